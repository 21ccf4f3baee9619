"""Every number that only a GPU can tell, in one file and under ten minutes: what `make gpu` runs.

    python -m benchmarks.gpu                                        # on a GPU: figures/benchmark/gpu.json
    python -m benchmarks.gpu --device cpu --quick --out tried.json  # the command itself, tried at tiny sizes

Each part is a command of its own, with what is left of the time. One that fails or takes too long is recorded
as such, the others run all the same, and the command then ends with status 1. No data are needed.
"""
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from acl_paper.console import command, make_folder, project_root, write_atomically
from acl_paper.log_mel import SSL_FEATURES
from acl_paper.runs import software_versions
from benchmarks.rehearsal import make_rehearsal
from benchmarks.studies import cell_times
from benchmarks.timing import machine

LIMIT_S = 570.0  # of all parts together
NEEDED = (
    "no GPU here: needed are an NVIDIA GPU with 16 GB, its driver and PyTorch with CUDA (this is torch {}); "
    "to try the command itself: make gpu DEVICE=cpu QUICK=1"
)
FULL = {
    "timing": "--size fsdnoisy18k --repeats 3 --sections 'training validation evaluation'",
    "exactness": "--scale 0.05 --epochs 5 --steps 20",
    "table": (
        "--epochs 3 --seeds 0 --alphas '1 0.9 0.8 0.7 0.6 0.5 0.4 0.3 0.2 0.1' "
        "--subsets 'all clean noisy noisy_small'"
    ),
    "table_scale": 0.01,
    "pretraining": "-p preset paper -p precision bfloat16 -p epochs 3",
    "pretraining_scale": 0.2,
}
QUICK = {
    "timing": "--size tiny --repeats 1 --sections evaluation",
    "exactness": "--scale 0.002 --epochs 1 --steps 2 --batch_size 8",
    "table": "--epochs 1 --seeds 0 --alphas 0.5 --subsets clean",
    "table_scale": 0.002,
    "pretraining": "-p preset small -p width 4 -p batch_size 8 -p epochs 1",
    "pretraining_scale": 0.002,
}


class Part(NamedTuple):
    """A part of the measurement.

    Parameters
    ----------
    words : list of str
        The command.
    result : callable
        Called when the command has succeeded: what it found, as JSON can hold it.
    """
    words: list[str]
    result: Callable[[], object]


def plan_parts(device: str, sizes: dict, folder: Path) -> dict[str, Part]:
    """The parts, the most wanted first; their rehearsals are made.

    Parameters
    ----------
    device : str
        "cuda" or "cpu".
    sizes : dict
        `FULL` or `QUICK`.
    folder : Path
        For whatever they write.

    Returns
    -------
    dict of str to Part
        `timing` of training, validation and evaluation; `exactness` of recorded steps and of repeated runs;
        the 40-cell `table` of a rehearsal; `pretraining` of its notebook.
    """
    return {
        "timing": _module("benchmarks.run", device, sizes["timing"], folder / "timing.json"),
        "exactness": _module("benchmarks.exactness", device, sizes["exactness"], folder / "exactness.json"),
        "table": _table(device, sizes, folder / "table"),
        "pretraining": _pretraining(device, sizes, folder / "pretraining"),
    }


def _module(module, device, options, out):
    words = [sys.executable, "-m", module, "--device", device, *shlex.split(options), "--out", str(out)]
    return Part(words, lambda: json.loads(out.read_text()))


def _table(device, sizes, folder):
    "All cells of the supervised table, as many at once as share a card; without the notebook of results."
    make_rehearsal(folder / "data", folder / "features", scale=sizes["table_scale"])
    at_once = max(1, min(8, os.cpu_count() // 2))
    shares = ["--gpus", "1", "--cells_per_gpu", str(at_once)] if device == "cuda" else ["--gpus", "0"]
    places = {name: str(folder / name) for name in ("data", "features", "runs", "figures")}
    words = [str(Path(sys.executable).with_name("acl_reproduce")), *shlex.split(sizes["table"]), *shares]
    words += [word for name, place in places.items() for word in (f"--{name}", place)]
    words.append("--more=--until train")
    return Part(words, lambda: cell_times(folder / "runs", "rehearsal").to_dict("records"))


def _pretraining(device, sizes, folder):
    "The notebook of one pre-training; its history tells the seconds of each epoch."
    data, features, runs = folder / "data", folder / "features", folder / "runs"
    make_rehearsal(data, features, scale=sizes["pretraining_scale"], config=SSL_FEATURES)
    words = [sys.executable, "-m", "papermill", "nbs/pretrain.ipynb", str(folder / "pretrain.ipynb")]
    words += ["-k", "python3", "--no-progress-bar", "--log-level", "WARNING", "--stdout-file", "/dev/stdout"]
    words += ["-r", "data_dir", str(data), "-r", "features_dir", str(features), "-r", "runs_dir", str(runs)]
    words += ["-r", "device", device, *shlex.split(sizes["pretraining"])]
    return Part(words, lambda: _history(runs))


def _history(runs):
    [path] = runs.rglob("history.csv")
    config = json.loads(path.with_name("config.json").read_text())
    history = pd.read_csv(path).to_dict("list")
    return {"settings": config["settings"], "data": config["data"], "history": history}


def run_part(part: Part, deadline: float, device: str) -> dict:
    """Run a part in a group of processes of its own, which ends with it.

    Parameters
    ----------
    part : Part
        What to run.
    deadline : float
        When it is ended, by the clock of `time.monotonic`.
    device : str
        With "cpu", no GPU is seen.

    Returns
    -------
    dict
        `command`, `seconds`, and `result` or `error`.
    """
    start = time.monotonic()
    hidden = {} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    environment = os.environ | hidden
    print(shlex.join(part.words), flush=True)
    process = subprocess.Popen(part.words, cwd=project_root(), env=environment, start_new_session=True)
    try:
        status = process.wait(deadline - start)
        error = f"ended with status {status}" if status else None
    except subprocess.TimeoutExpired:
        error = f"not done after {deadline - start:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    command = shlex.join([Path(part.words[0]).name, *part.words[1:]])
    told = {"command": command, "seconds": round(time.monotonic() - start, 1)}
    return told | ({"error": error} if error else {"result": part.result()})


def commit() -> str | None:
    "The commit that is checked out, with a note where files differ from it; None outside of a repository."
    git = ["git", "-C", str(project_root())]
    try:
        name = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True, stderr=subprocess.DEVNULL)
        changed = subprocess.check_output([*git, "status", "--porcelain"], text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return name.strip() + (" with changes" if changed else "")


@command
def main(
    device: str = "cuda",  # cuda, or cpu with --quick
    quick: bool = False,  # tiny sizes, whose numbers mean nothing: to try the command
    out: str = None,  # JSON file (default: figures/benchmark/gpu.json, or _build/gpu.json with --quick)
):
    "Measure on a GPU what the notebooks leave open; no data are needed."
    if device not in ("cuda", "cpu") or (device == "cpu" and not quick):
        raise SystemExit(f"benchmarks.gpu: --device is cuda, or cpu with --quick, not {device}")
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(NEEDED.format(torch.__version__))
    path = Path(out or ("_build/gpu.json" if quick else "figures/benchmark/gpu.json"))
    make_folder(path.parent, "the numbers")
    start = time.monotonic()
    about = {"machine": machine(), "versions": software_versions(), "commit": commit(), "quick": quick}
    done = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        parts = plan_parts(device, QUICK if quick else FULL, Path(folder))
        run = partial(run_part, deadline=start + LIMIT_S, device=device)
        all_told = pool.map(run, parts.values()) if quick else map(run, parts.values())  # quick: all at once
        for name, told in zip(parts, all_told):
            done[name] = told
            seconds = round(time.monotonic() - start, 1)
            write_atomically(path, json.dumps(about | {"seconds": seconds, "parts": done}, indent=1) + "\n")
    failed = {name: told["error"] for name, told in done.items() if "error" in told}
    print(f"{path}: {', '.join(done.keys() - failed)} in {seconds:.0f} s")
    if failed:
        raise SystemExit("benchmarks.gpu: " + "; ".join(f"{name}: {error}" for name, error in failed.items()))


if __name__ == "__main__":
    main()
