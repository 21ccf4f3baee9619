"""Work that is killed at random moments, again and again: what it leaves at its end is what it leaves undisturbed. Apart from `make test`: make test-all.

Each piece of works.py is done in a process of its own, which is ended by SIGKILL after a random part of the time that the
whole takes, several times; then it is left alone. Kills at chosen moments are in the tests of each part.
"""
import csv
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import works
from chance import SEED, chance, rounds
from helpers import contents, make_data_set
from test_download import files, server, sums  # noqa: F401
from test_hard_features import make_set
from test_workflow import call, project  # noqa: F401

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["works", "pytest"])  # once; each process is then forked with everything loaded
KILLS = 3  # of each piece of work, before it is left alone


def process_of(work, *arguments):
    process = CONTEXT.Process(target=work, args=arguments)
    process.start()
    return process


def left_alone(work, *arguments):
    """How many seconds a piece of work takes."""
    start = time.monotonic()
    process = process_of(work, *arguments)
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - start


def killed(dice, seconds, work, *arguments):
    """Kill a piece of work some times, and let it end; how often it really was killed."""
    n_killed = 0
    for _ in range(KILLS):
        process = process_of(work, *arguments)
        process.join(dice.uniform(0, seconds))
        process.kill()
        process.join()
        n_killed += process.exitcode == -signal.SIGKILL
        assert process.exitcode in (0, -signal.SIGKILL), f"seed {SEED}"
    assert process_of_ended_well(work, *arguments), f"seed {SEED}"
    return n_killed


def process_of_ended_well(work, *arguments):
    process = process_of(work, *arguments)
    process.join()
    return process.exitcode == 0


class Kills:
    """Does a piece of work undisturbed once, and then killed, `n` times; all of them must leave the same files."""

    def __init__(self, what, tmp_path, tried, left=contents):
        self.what, self.folder, self.tried, self.left = what, tmp_path, tried, left

    def compare(self, n, work, *arguments):
        """`work(folder, *arguments)` is the piece of work."""
        seconds = left_alone(work, self.folder / "undisturbed", *arguments)
        expected, right, wrong = self.left(self.folder / "undisturbed"), 0, []
        assert expected
        for i in range(rounds(n)):
            folder = self.folder / str(i)
            n_killed = killed(chance("kills", self.what, i), seconds, work, folder, *arguments)
            found = self.left(folder)
            differ = [name for name in sorted({*expected, *found}) if expected.get(name) != found.get(name)]
            right += 0 if differ else n_killed
            wrong += [(i, n_killed, differ)] if differ else []
            shutil.rmtree(folder)
        self.tried(f"kills of {self.what}", right=right, wrong=sum(n_killed for _, n_killed, _ in wrong))
        assert wrong == [], f"seed {SEED}"


def without_times(folder):
    """The files of a run, of its history and metrics what does not tell how long it took."""
    left = {name: content for name, content in contents(folder).items() if not name.endswith(".lock")}
    rows = list(csv.DictReader(left["history.csv"].decode().splitlines()))
    left["history.csv"] = [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
    metrics = {name: value for name, value in json.loads(left["metrics.json"]).items() if name != "sha256" and "seconds" not in name}
    return left | {"metrics.json": metrics}


def test_extraction(tmp_path, tried):
    """A feature store that was killed while it was made, and made again, is the same file, with nothing beside it."""
    root = make_set(tmp_path / "set", [f"{i}.wav" for i in range(300)])
    Kills("an extraction", tmp_path, tried).compare(2, works.extract, root)


def test_mini(tmp_path, tried):
    """The mini data set is the same files after any kill, and nothing is left beside it."""
    Kills("the mini data set", tmp_path, tried).compare(2, works.mini)


def test_training(tmp_path, tried):
    """A training that was killed between or within its epochs, and resumed, ends with the same weights, history and predictions."""
    Kills("a training", tmp_path, tried, without_times).compare(2, works.train)


def test_pretraining(tmp_path, tried):
    """A pre-training that was killed and resumed ends with the same weights and history."""
    Kills("a pre-training", tmp_path, tried, without_times).compare(1, works.pretrain)


def test_probe(tmp_path, tried):
    """A fine-tuning that was killed, which begins anew, ends with the same weights and history; its encoder stays as it was."""
    works.pretrain(tmp_path / "encoder")
    before = contents(tmp_path / "encoder")
    Kills("a fine-tuning", tmp_path, tried, without_times).compare(2, works.probe, tmp_path / "encoder")
    assert contents(tmp_path / "encoder") == before


def test_download(server, files, tmp_path, tried):  # noqa: F811
    """A download that was killed while it fetched or unpacked ends with the same files."""
    server.pause_s = 0.02
    Kills("a download", tmp_path, tried).compare(2, works.download, server.url, sums(files))


def finish(project, chosen):  # noqa: F811
    done = subprocess.run(**call(project, **chosen), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"seed {SEED}: {done.stderr}"


def group_killed_after(seconds, project, chosen):  # noqa: F811
    """Kill the workflow's driver, all of its jobs and their kernels; whether it was still at work."""
    driver = subprocess.Popen(**call(project, **chosen), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        driver.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(driver.pid, signal.SIGKILL)
    return driver.wait() == -signal.SIGKILL


def cell(runs):
    """The files of the one run below a folder, without drawings and logs, and the table that was made of it."""
    (metrics,) = Path(runs).rglob("metrics.json")
    kept = without_times(metrics.parent)
    return {name: value for name, value in kept.items() if Path(name).suffix in (".csv", ".npy", ".safetensors") or name == "metrics.json"}


def test_workflow(project, tmp_path, tried):  # noqa: F811
    """The workflow, killed with all of its jobs in the middle of any of them, makes the same run and the same table when it is called again."""
    data = make_data_set(tmp_path / "plain", 60, 2.1)
    common = dict(alphas="0.5", subsets="clean", seeds="0", epochs=2, data=data, dataset="plain")

    def chosen(name):
        return common | {part: tmp_path / name / part for part in ("runs", "figures", "features")}

    start = time.monotonic()
    finish(project, chosen("undisturbed"))
    seconds, expected = time.monotonic() - start, cell(tmp_path / "undisturbed")
    table = (tmp_path / "undisturbed/figures/plain/results.csv").read_bytes()
    n_right, wrong = 0, []
    for i in range(rounds(0.3)):
        dice, name = chance("kills", "workflow", i), str(i)
        n_killed = sum(group_killed_after(dice.uniform(0, 0.7 * seconds), project, chosen(name)) for _ in range(KILLS))
        finish(project, chosen(name))
        same = cell(tmp_path / name) == expected and (tmp_path / name / "figures/plain/results.csv").read_bytes() == table
        n_right += n_killed if same else 0
        wrong += [] if same else [(i, n_killed)]
    tried("kills of the workflow", right=n_right, wrong=sum(n_killed for _, n_killed in wrong))
    assert wrong == [], f"seed {SEED}"
