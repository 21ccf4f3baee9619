"""`make reproduce`: the Snakefile run for real on a small data set, and killed in the middle.

Everything happens in a copy of the repository. (The same on a Slurm cluster: tests/slurm.)
"""
import json
import re
import shutil
import subprocess
import time

import nbformat
import pandas as pd
import psutil
import pytest
from helpers import command, contents, copy_of_repository, environment, make_data_set, run_acl

from acl_paper.data import FSDNOISY18K_COUNTS
from acl_paper.mini import MiniConfig, make_mini

TINY = MiniConfig(clean_per_class=3, noisy_per_class=2, noisy_small_per_class=1, test_per_class=1)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the repository without runs, its mini data set replaced by a tiny one."""
    copy = copy_of_repository(tmp_path_factory.mktemp("workflow"))
    shutil.rmtree(copy / ".snakemake", ignore_errors=True)
    make_mini(copy / "data" / "mini", TINY, n_jobs=1, every_s=None)
    return copy


def words(*arguments, **settings):
    """The settings and further arguments of `acl_reproduce` as they are typed."""
    return [*(word for name, value in settings.items() for word in (f"--{name}", str(value))), *arguments]


def call(project, *arguments, **settings):
    """The command `acl_reproduce` and the environment it is run in: the copy's package, not the installed one."""
    return dict(args=command("acl_reproduce", *words(*arguments, **settings)), cwd=project, env=environment(PYTHONPATH=str(project)))


def reproduce(project, *arguments, timeout=300, **settings):
    """Run it to its end."""
    return run_acl("acl_reproduce", *words(*arguments, **settings), cwd=project, timeout=timeout, environ={"PYTHONPATH": str(project)})


def planned(project, *arguments, more="-n", **settings):
    """What a dry run says."""
    done = reproduce(project, f"--more={more}", *arguments, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def count(rule, text):
    found = re.search(rf"^{rule} +(\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else 0


def test_a_dry_run_lists_the_cells_and_makes_nothing(project):
    before = contents(project)
    text = planned(project)
    assert [count(rule, text) for rule in ("features", "train", "results")] == [1, 18, 1]
    assert "runs/mini/noisy_small/alpha=0.1/seed=1/metrics.json" in text
    after = {name: content for name, content in contents(project).items() if not name.startswith(".snakemake")}
    assert after == before
    text = planned(project, alphas="1 0.25", subsets="all", seeds="7", epochs="2")
    assert count("train", text) == 2
    assert "runs/mini/all/alpha=0.25/seed=7/metrics.json" in text


def test_on_fsdnoisy18k_it_is_the_papers_table_with_five_seeds(project, tmp_path):
    """A folder with FSDnoisy18k's numbers of clips, of which a dry run reads only the tables."""
    n = FSDNOISY18K_COUNTS
    rows = [f"{i}.wav,Rain,/m/0,{int(i < n['clean'])},{int(n['clean'] <= i < n['clean'] + n['noisy_small'])}\n" for i in range(n["train"])]
    (tmp_path / "FSDnoisy18k.meta").mkdir()
    (tmp_path / "FSDnoisy18k.meta" / "train.csv").write_text("fname,label,aso_id,manually_verified,noisy_small\n" + "".join(rows))
    (tmp_path / "FSDnoisy18k.meta" / "test.csv").write_text("fname,label,aso_id\n" + "".join(f"t{i}.wav,Rain,/m/0\n" for i in range(n["test"])))
    text = planned(project, part="all", data=tmp_path)
    assert [count(rule, text) for rule in ("train", "pretrain", "probe")] == [10 * 4 * 5, 11, 33]
    assert "runs/FSDnoisy18k/noisy/alpha=0.4/seed=4/metrics.json" in text
    assert "runs/FSDnoisy18k/pretrain/resnet18/alpha=0.0/temperature=0.2/seed=271828/finetune-clean/seed=271828/metrics.json" in text
    text = planned(project, part="all", data=tmp_path, alphas="0.3", subsets="clean", gpus=2, cells_per_gpu=3, more="-n -p")
    assert text.count("-p epochs 99") == 5
    assert "-p alpha 0.3 -p temperature 0.2 -p seed 271828 -p epochs 500" in text
    assert text.count("-p epochs 200") == 3 and set(re.findall(r"CUDA_VISIBLE_DEVICES=(\d)", text)) == {"0", "1"}


def test_each_part_has_its_jobs(project):
    rules = ("features", "train", "results", "ssl_features", "pretrain", "probe", "ssl_results")
    grid, own = dict(alphas="1 0.3", seeds="0"), {"supervised": dict(subsets="clean"), "selfsupervised": dict(temperatures="0.2 0.5")}
    own["all"] = own["supervised"] | own["selfsupervised"]
    plans = {part: planned(project, part=part, **grid, **own[part]) for part in own}
    jobs = {part: [count(rule, plan) for rule in rules] for part, plan in plans.items()}
    assert jobs["supervised"] == [1, 2, 1, 0, 0, 0, 0]
    assert jobs["selfsupervised"] == [0, 0, 0, 1, 4, 12, 1]
    assert jobs["all"] == [1, 2, 1, 1, 4, 12, 1]


def test_make_passes_its_settings_on(project):
    """What make would do, without an environment of its own."""
    settings = dict(PART="all", FEATURES="other features", TEMPERATURES="0.2 0.3", LINEAR_EPOCHS="3", FINETUNE_EPOCHS="2")
    done = subprocess.run(["make", "-n", "reproduce", *(f"{name}={value}" for name, value in settings.items())], cwd=project, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name, value in settings.items():
        assert f"--{name.lower()}='{value}'" in done.stdout


def test_cells_take_turns_on_the_gpus(project):
    text = planned(project, alphas="1 0.5", seeds="0 1", subsets="clean", gpus=2, more="-n -p")
    cards = re.findall(r"CUDA_VISIBLE_DEVICES=(\d)", text)
    shares = re.findall(r"gpu0=(\d), gpu1=(\d), card=(\d)", text)
    assert sorted(cards) == list("0011")
    assert sorted(shares) == [("0", "1", "1")] * 2 + [("1", "0", "0")] * 2


@pytest.mark.parametrize("setting, value, message", [
    ("alphas", "2", "alphas must be numbers from 0 to 1, got 2"),
    ("subsets", "cleen", "subsets must be among all, clean, noisy, noisy_small, got 'cleen'"),
    ("part", "both", "part must be one of supervised, selfsupervised, all, got 'both'"),
    ("data", "no/such/folder", "data_dir is no/such/folder, which is not a folder"),
])
def test_settings_that_cannot_be_are_refused_at_once(project, setting, value, message):
    done = reproduce(project, **{setting: value})
    assert done.returncode != 0
    assert message in done.stderr + done.stdout


# One story: a cell is killed, then the driver, then the table is finished, then things change.

GRID = dict(alphas="1 0.5", subsets="clean", seeds="0", epochs=8)
FIRST, SECOND = (f"runs/mini/clean/alpha={alpha}/seed=0" for alpha in ("1.0", "0.5"))


def wait_for(condition, what, timeout_s=120):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s for {what}"
        time.sleep(0.05)


def text_of(path):
    return path.read_text() if path.is_file() else ""


def processes_of(driver):
    return psutil.Process(driver.pid).children(recursive=True)


def kernel_of(driver, cell):
    """The process of the Jupyter kernel that runs a cell."""
    for process in processes_of(driver):
        line = " ".join(process.cmdline())
        if "papermill" in line and f"{cell}/train.ipynb" in line:
            for child in process.children(recursive=True):
                if "ipykernel_launcher" in " ".join(child.cmdline()): return child


def start(project, **settings):
    return subprocess.Popen(**call(project, **settings), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)


def training(project, cell):
    """Whether a cell's log shows epochs."""
    return re.search(r"epochs", text_of(project / cell / "train.log")) is not None


def test_1_a_killed_cell_does_not_stop_the_others(project):
    driver = start(project, **GRID, jobs=2)
    wait_for(lambda: training(project, SECOND), "training to begin")
    kernel_of(driver, SECOND).kill()
    error = driver.communicate(timeout=200)[1]
    assert driver.returncode != 0
    assert (project / FIRST / "metrics.json").is_file()
    assert not (project / SECOND / "metrics.json").exists()
    assert "1 of 2 cells have no result" in error and f"{SECOND}: " in error and "DeadKernelError" in error
    assert nbformat.read(project / SECOND / "train.ipynb", 4).cells


def test_2_a_killed_driver_is_noticed_and_the_rest_is_finished(project):
    first = (project / FIRST / "metrics.json").stat().st_mtime_ns
    (project / SECOND / "train.log").unlink()
    driver = start(project, **GRID, jobs=2)
    wait_for(lambda: training(project, SECOND), "training to begin")
    refused = reproduce(project, **GRID)
    assert refused.returncode != 0 and "this table is being made already, by process" in refused.stderr
    orphans = [p for p in processes_of(driver) if "papermill" in " ".join(p.cmdline())]
    driver.kill()
    driver.wait()  # not communicate(): its orphans hold the other end of the pipe
    assert orphans and all(p.is_running() for p in orphans), "the cell should have outlived its driver"
    for p in orphans: p.suspend()
    driver = start(project, **GRID, jobs=2)
    wait_for(lambda: "waiting: this notebook is run by another process" in text_of(project / SECOND / "train.log"), "the two to meet in one cell")
    for p in orphans: p.resume()
    error = driver.communicate(timeout=300)[1]
    assert driver.returncode == 0, error
    assert count("train", error) == 1
    assert (project / FIRST / "metrics.json").stat().st_mtime_ns == first
    config = json.loads((project / SECOND / "config.json").read_text())["settings"]
    assert (config["alpha"], config["subset"], config["seed"], config["epochs"]) == (0.5, "clean", 0, 8)
    assert (project / "figures" / "mini" / "results.csv").is_file()
    assert not [p for p in orphans if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_3_what_is_done_stays_done_until_something_that_matters_changes(project):
    assert "Nothing to be done" in planned(project, **GRID)
    notebook = nbformat.read(project / "nbs" / "train.ipynb", 4)
    notebook.cells[0].source += "\n\nAnother sentence."
    notebook.metadata["edited"] = True
    nbformat.write(notebook, project / "nbs" / "train.ipynb")
    losses = project / "acl_paper" / "losses.py"
    losses.write_text(losses.read_text() + "\n# a remark\n")
    assert "Nothing to be done" in planned(project, **GRID)

    text = planned(project, **GRID | {"epochs": 3})
    assert count("train", text) == 2 and "epochs was 8, is 3" in text
    shutil.rmtree(project / "data" / "features")  # features alone are no reason to train again ...
    text = planned(project, **GRID | {"seeds": "0 1"})
    assert (count("features", text), count("train", text)) == (1, 2)  # ... but new cells need them

    losses.write_text(losses.read_text() + "\nchanged = True\n")
    text = planned(project, **GRID)
    assert count("train", text) == 2 and "Params have changed" in text


@pytest.mark.long
def test_the_self_supervised_part_to_its_end(project):
    """One encoder, three probes, the table; then only what a changed setting concerns is made again."""
    grid = dict(part="selfsupervised", alphas="1", seeds="0", epochs=1, linear_epochs=2, finetune_epochs=1)
    done = reproduce(project, **grid, jobs=2, timeout=900)
    assert done.returncode == 0, done.stderr
    encoder = project / "runs" / "mini" / "pretrain" / "resnet18" / "alpha=1.0" / "temperature=0.2" / "seed=0"
    for probe, epochs in (("linear-noisy", 2), ("finetune-noisy", 1), ("finetune-clean", 1)):
        config = json.loads((encoder / probe / "seed=0" / "config.json").read_text())
        assert (config["settings"]["epochs"], config["pretrained"]["epochs"]) == (epochs, 1)
        assert config["untrained"] is not None  # asked of the baseline
    table = pd.read_csv(project / "figures" / "mini" / "selfsupervised.csv")
    ours = table[table.n_seeds > 0]
    assert len(ours) == 3 * 3 and set(table.verdict) == {"not run"} and table.synthetic.all()
    assert (project / "figures" / "mini" / "selfsupervised_temperature=0.2.svg").is_file()

    assert "Nothing to be done" in planned(project, **grid)
    text = planned(project, **grid | {"finetune_epochs": 2})
    assert [count(rule, text) for rule in ("pretrain", "probe", "ssl_results")] == [0, 2, 1] and "epochs was 1, is 2" in text
    text = planned(project, **grid | {"epochs": 2})
    assert [count(rule, text) for rule in ("pretrain", "probe", "ssl_results")] == [1, 3, 1]


@pytest.mark.long
def test_an_old_checkpoint_does_not_answer_another_setting(project):
    grid = dict(part="selfsupervised", alphas="1", seeds="1", epochs=1)
    encoder = project / "runs" / "mini" / "pretrain" / "resnet18" / "alpha=1.0" / "temperature=0.2" / "seed=1"
    assert reproduce(project, "--more=--until pretrain", **grid).returncode == 0
    again = reproduce(project, "--more=--until pretrain", **grid | {"epochs": 2})
    assert again.returncode == 0, again.stderr
    assert json.loads((encoder / "metrics.json").read_text())["epochs"] == 2


def test_a_subset_that_the_data_have_not_is_refused(project, tmp_path):
    """This data set has no clips with unchecked labels."""
    data = make_data_set(tmp_path / "plain", 60, 2.1)
    refused = reproduce(project, data=data, alphas="0.5", subsets="noisy clean", seeds="0", epochs=1, jobs=2)
    assert refused.returncode != 0 and "subsets must be among all, clean, got 'noisy'" in refused.stderr


def test_a_cell_that_fails_says_why_and_can_be_looked_at(project, tmp_path):
    """Its weights cannot be written: a folder of their name is in the way."""
    data = make_data_set(tmp_path / "failing", 60, 2.1)
    cell = project / "runs" / "failing" / "all" / "alpha=0.5" / "seed=0"
    (cell / "model.safetensors" / "mine").mkdir(parents=True)
    done = reproduce(project, data=data, alphas="0.5", subsets="all clean", seeds="0", epochs=1, jobs=2)
    assert done.returncode != 0
    assert "1 of 2 cells have no result" in done.stderr and "model.safetensors" in done.stderr
    assert "model.safetensors" in (cell / "train.log").read_text()
    assert any("ename" in output for c in nbformat.read(cell / "train.ipynb", 4).cells for output in c.get("outputs", []))
    assert (project / "runs" / "failing" / "clean" / "alpha=0.5" / "seed=0" / "metrics.json").is_file()
