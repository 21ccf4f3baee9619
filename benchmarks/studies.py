r"""Smaller studies: larger data, accuracy in faster modes, starting up, the cells of a table.

    python -m benchmarks.studies scale --out figures/benchmark/scale.json
    python -m benchmarks.studies precision --out figures/benchmark/precision.csv
    python -m benchmarks.studies startup --out figures/benchmark/startup.csv
    python -m benchmarks.studies cells --runs runs --dataset rehearsal \
      --out figures/benchmark/rehearsal-cells.csv
"""
import itertools
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import torch

from acl_paper.console import command, project_root, write_atomically
from acl_paper.data import DatasetLocation, load_clips, locate_dataset
from acl_paper.evaluation import accuracy, evaluate
from acl_paper.features import feature_store, open_feature_store
from acl_paper.patches import make_split
from acl_paper.training import TrainConfig, fit
from benchmarks.rehearsal import make_rehearsal
from benchmarks.supervised import package_training, some_patches
from benchmarks.timing import cpu_seconds

MODES = {
    "float32": {},
    "bfloat16": {"precision": "bfloat16"},
    "frames in float16": {"frames": "float16"},
}
REFUSED = "a cell, refused at its first line"


def measure_scale(data_dir: str, store_path: str, settings: dict, n_steps: int = 4) -> dict:
    """Seconds and memory of making the split `all`, and seconds of a step; to be called in a new process.

    Parameters
    ----------
    data_dir : str
        Folder of the data set.
    store_path : str
        Its feature store.
    settings : dict
        Of `TrainConfig`.
    n_steps : int
        Steps that are timed.

    Returns
    -------
    dict
        `frames` of the store, `patches` of the training split, `split_cpu_s`, `split_mb`, `peak_mb` and
        `step_cpu_s`. `split_mb` is what Linux says the process alone holds for the split; `peak_mb` the most
        that it held until then, with torch and what was read of the store.
    """
    torch.set_num_threads(1)
    before_mb = _memory_mb("RssAnon")
    config = TrainConfig(subset="all", epochs=2, **settings)
    clips = load_clips(data_dir)
    store = open_feature_store(store_path)
    cpu = time.process_time()
    split = make_split(store, clips, config)
    cpu = time.process_time() - cpu
    split_mb, peak_mb = _memory_mb("RssAnon") - before_mb, _memory_mb("VmHWM")
    few = replace(
        split, train=some_patches(split.train, 64 * n_steps), validation=some_patches(split.validation, 64)
    )
    step = package_training(few, n_steps, config, "cpu")
    return {
        "frames": len(store.frames),
        "patches": len(split.train),
        "split_cpu_s": cpu,
        "split_mb": split_mb,
        "peak_mb": peak_mb,
        "step_cpu_s": step["cpu_s"] / n_steps,
    }


def _memory_mb(kind):
    "Memory in MB that this process holds, as Linux has it in a line of its status."
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) / 1000
    raise OSError("this system does not tell how much memory a process holds")


def scale_study(base: float = 0.05, factors: tuple[int, ...] = (1, 3, 10, 20), **settings) -> pd.DataFrame:
    """Time and memory for rehearsals of growing size, each in a new process.

    Parameters
    ----------
    base : float
        Scale of the smallest.
    factors : tuple of int
        How many times as large the rehearsals are.
    **settings
        Of `TrainConfig`.

    Returns
    -------
    DataFrame
        One row per factor, the index, with what `measure_scale` returns.
    """
    context = multiprocessing.get_context("spawn")
    rows = []
    for factor in factors:
        with tempfile.TemporaryDirectory() as folder, context.Pool(1) as pool:
            store = make_rehearsal(f"{folder}/rehearsal", f"{folder}/features", scale=base * factor)
            measured = pool.apply(measure_scale, (f"{folder}/rehearsal", str(store.path), settings))
            rows.append({"factor": factor} | measured)
    return pd.DataFrame(rows).set_index("factor")


def precision_study(
    location: DatasetLocation, seeds: tuple[int, ...] = (0, 1, 2), **settings
) -> pd.DataFrame:
    """Clip accuracy in each mode of `MODES`, with the same seeds.

    Parameters
    ----------
    location : DatasetLocation
        The data set.
    seeds : tuple of int
        Of the trainings.
    **settings
        Of `TrainConfig`.

    Returns
    -------
    DataFrame
        One row per mode and seed: `mode`, `seed`, `accuracy`, `n_test_clips`, `validation_loss` of the kept
        weights, and `training_cpu_s`.
    """
    clips = load_clips(location.root)
    store = feature_store(location, report_every_s=None)
    rows = []
    for seed, (mode, chosen) in itertools.product(seeds, MODES.items()):
        config = TrainConfig(seed=seed, **settings, **chosen)
        split = make_split(store, clips, config)
        cpu = time.process_time()
        trained = fit(split, config, device="cpu", report_every_s=None)
        cpu = time.process_time() - cpu
        predictions, _ = evaluate(trained, split.test, clips.fname, device="cpu")
        score = accuracy(predictions)
        rows.append(
            {
                "mode": mode,
                "seed": seed,
                "accuracy": score.value,
                "n_test_clips": score.n,
                "validation_loss": trained.history.validation_loss[trained.best_epoch - 1],
                "training_cpu_s": cpu,
            }
        )
    return pd.DataFrame(rows)


def starts(folder: str | Path) -> dict[str, list]:
    """What `startup_study` times: commands by name.

    Parameters
    ----------
    folder : str or Path
        For the notebooks that they need and make.
    """
    cells = nbformat.read(project_root() / "nbs/train.ipynb", as_version=4).cells
    imports = next(cell.source for cell in cells if cell.source.startswith("import "))
    empty = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("pass")])
    nbformat.write(empty, Path(folder, "empty.ipynb"))
    python = [sys.executable, "-c"]
    papermill = [sys.executable, "-m", "papermill", "-k", "python3", "--no-progress-bar"]
    out = Path(folder, "out.ipynb")
    return {
        "Python": [*python, "pass"],
        "torch": [*python, "import torch"],
        "torch and acl_paper.losses": [*python, "import torch, acl_paper.losses"],
        "what a cell imports": [*python, imports],
        "an empty notebook": [*papermill, Path(folder, "empty.ipynb"), out],
        REFUSED: [*papermill, project_root() / "nbs/train.ipynb", out, "-p", "alpha", "2"],
    }


def startup_study(repeats: int = 5) -> pd.DataFrame:
    """CPU seconds of new processes that do nothing but start.

    Parameters
    ----------
    repeats : int
        Rounds that count; one more comes first.

    Returns
    -------
    DataFrame
        One row per round and entry of `starts`: `round`, `start`, `cpu_s`.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        commands = starts(folder)
        for number, (name, words) in itertools.product(range(repeats + 1), commands.items()):
            before = cpu_seconds(own=False)
            ended = subprocess.run(words, capture_output=True, text=True)
            cpu_s = cpu_seconds(own=False) - before
            if name == REFUSED:
                assert "alpha must be" in ended.stderr, ended.stderr
            else:
                ended.check_returncode()
            rows.append({"round": number, "start": name, "cpu_s": round(cpu_s, 3)})
    return pd.DataFrame([row for row in rows if row["round"] > 0])


def cell_times(runs_dir: str | Path, dataset: str) -> pd.DataFrame:
    """What the finished cells of a table cost.

    Parameters
    ----------
    runs_dir : str or Path
        Folder of the runs.
    dataset : str
        Name of the data set they were trained on.

    Returns
    -------
    DataFrame
        One row per cell: `subset`, `alpha`, `seed`, `epochs`, `training_s` and `training_cpu_s` of the run,
        `cell_s` of the whole notebook, `started` and `ended` (UTC).
    """
    rows = []
    for path in sorted(Path(runs_dir, dataset).glob("*/alpha=*/seed=*/metrics.json")):
        metrics = json.loads(path.read_text())
        notebook = json.loads(path.with_name("train.ipynb").read_text(encoding="utf-8"))
        took = notebook["metadata"]["papermill"]
        subset, alpha, seed = (part.split("=")[-1] for part in path.parts[-4:-1])
        rows.append(
            {
                "subset": subset,
                "alpha": float(alpha),
                "seed": int(seed),
                "epochs": metrics["epochs"],
                "training_s": metrics["training_seconds"],
                "training_cpu_s": metrics["training_cpu_seconds"],
                "cell_s": took["duration"],
                "started": took["start_time"],
                "ended": took["end_time"],
            }
        )
    return pd.DataFrame(rows)


def _scale(base, **_):
    tables = {kind: scale_study(base, frames=kind).round(4).reset_index() for kind in ("float32", "float16")}
    recorded = {kind: table.to_dict("records") for kind, table in tables.items()}
    told = pd.concat(tables, names=["frames in"]).droplevel(1)
    return told, json.dumps(recorded, indent=1) + "\n"


def _precision(epochs, seeds, **_):
    table = precision_study(locate_dataset("mini"), tuple(range(seeds)), epochs=epochs).round(6)
    return table, table.to_csv(index=False)


def _startup(repeats, **_):
    table = startup_study(repeats)
    return table, table.to_csv(index=False)


def _cells(runs, dataset, **_):
    table = cell_times(runs, dataset)
    return table, table.to_csv(index=False)


STUDIES = {"scale": _scale, "precision": _precision, "startup": _startup, "cells": _cells}


@command
def main(
    study: str,  # scale, precision, startup or cells
    base: float = 0.05,  # scale: of the smallest of the rehearsals, whose largest is 20 times as large
    epochs: int = 15,  # precision: of each training on the mini data set's clean subset
    seeds: int = 3,  # precision: how many trainings in each mode
    repeats: int = 5,  # startup: rounds that count
    runs: str = "runs",  # cells: folder of the runs
    dataset: str = "rehearsal",  # cells: name of the data set they were trained on
    out: str = None,  # file to write: JSON for scale, CSV for the others
):
    "Make one of the smaller studies, on one thread."
    if study not in STUDIES:
        raise SystemExit(f"benchmarks.studies: there are {', '.join(STUDIES)}, not {study!r}")
    torch.set_num_threads(1)
    table, text = STUDIES[study](
        base=base, epochs=epochs, seeds=seeds, repeats=repeats, runs=runs, dataset=dataset
    )
    if out:
        write_atomically(Path(out), text)
    print(table.to_string())


if __name__ == "__main__":
    main()
