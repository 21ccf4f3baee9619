"""The workflow where names, homes, cores, locks and power fail; and "done" only when it is done."""
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from helpers import ROOT, make_data_set, run
from test_workflow import call, contents, count, planned, project, reproduce, wait_for  # noqa: F401

from acl_paper.data import load_clips
from acl_paper.fingerprints import first_edition_fingerprint
from acl_paper.workflow import _values, differences, linked, plan_encoders, plan_table, unfinished, visible_gpus

CELL = dict(alphas="1", subsets="clean", seeds="0", epochs=1)


@pytest.fixture
def data(tmp_path):
    """A data set of its own; its features are made in a second."""
    return make_data_set(tmp_path / "plain", 60, 2.1)


def settings(data, tmp_path, **more):
    """What keeps a test's runs, figures and features apart from those of the others."""
    folders = {name: tmp_path / name for name in ("runs", "figures", "features")}
    return CELL | {"data": data, "dataset": "plain"} | folders | more


# Done means done

def features_log(tmp_path):
    return next((tmp_path / "features").glob("plain/*.h5.log"), tmp_path / "none")


def test_a_driver_killed_during_extraction(project, data, tmp_path):
    """Its extraction lives on and ends well; the next call must still make the cell."""
    chosen = settings(data, tmp_path)
    driver = subprocess.Popen(**call(project, **chosen), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for(lambda: features_log(tmp_path).is_file(), "extraction to begin")
    driver.kill()
    driver.wait()
    wait_for(lambda: list((tmp_path / "features").glob("plain/*.made")), "the orphan to end")
    text = planned(project, **chosen)
    assert [count(rule, text) for rule in ("features", "train", "results")] == [1, 1, 1]


def test_a_clip_that_changes_before_there_is_a_cell(project, data, tmp_path):
    chosen = settings(data, tmp_path)
    made = reproduce(project, "--more=--until features", **chosen)
    assert made.returncode == 0, made.stderr
    assert "done" not in made.stderr.splitlines()[-4] and "1 of 1 cells have no result:" in made.stderr  # said as it is
    assert count("train", planned(project, **chosen)) == 1
    clip = data / "FSDnoisy18k.audio_train" / "1003.wav"
    clip.unlink()
    soundfile.write(clip, np.random.default_rng(5).uniform(-0.5, 0.5, 4 * 44_100), 44_100)
    text = planned(project, **chosen)
    assert [count(rule, text) for rule in ("features", "train", "results")] == [1, 1, 1]


def finished(folder, wanted, **damaged):
    """A run folder as the files say that are asked."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"config.json": json.dumps({"kind": "training"} | wanted), "metrics.json": '{"epochs": 1}'} | damaged
    for name, text in files.items():
        (folder / name).write_text(text)


@pytest.mark.parametrize("damage", [{"metrics.json": ""}, {"metrics.json": "{\"epo"}, {"metrics.json": "\0" * 40}, {"metrics.json": "7"},
                                    {"config.json": ""}, {"config.json": "[]"}, {"config.json": "{\"kind\": \"training\", \"settings\": [1]}"},
                                    {"config.json": "{\"kind\": 1}"}])
def test_a_run_that_a_power_cut_left_half_written_is_made_again(damage, tmp_path):
    table = plan_table(CELL | {"dataset": "mini", "runs": str(tmp_path)})
    (folder, wanted), = table.wanted.items()
    folder = tmp_path / folder
    finished(folder, wanted)
    assert differences(folder, wanted) == []
    finished(folder, wanted, **damage)
    different = differences(folder, wanted)
    assert len(different) == 1 and "damaged" in different[0]
    assert "1 of 1 cells have no result" in unfinished(table.wanted, {}, {})


def test_a_run_from_elsewhere_is_made_again_when_it_is_damaged_or_another(project, tmp_path):
    chosen = CELL | {"dataset": "mini", "runs": str(tmp_path / "runs")}
    table = plan_table(chosen)
    (folder, wanted), = table.wanted.items()
    finished(tmp_path / folder, wanted)
    assert count("train", planned(project, **chosen)) == 0
    finished(tmp_path / folder, wanted, **{"metrics.json": ""})
    text = planned(project, **chosen)
    assert count("train", text) == 1 and "damaged" in text
    other = wanted | {"settings": wanted["settings"] | {"epochs": 7}}
    finished(tmp_path / folder, other)
    text = planned(project, **chosen)
    assert count("train", text) == 1 and f"{folder} is made again: epochs was 7, is 1" in text


def test_the_last_line_looks_at_the_files(tmp_path):
    table = plan_table(CELL | {"dataset": "mini", "runs": str(tmp_path)})
    (folder, wanted), = table.wanted.items()
    results, features = {str(tmp_path / "results.csv"): str(tmp_path / "results.log")}, {str(tmp_path / "f.made"): str(tmp_path / "f.log")}
    (tmp_path / "f.log").write_text("Traceback\nacl_paper.console.DatasetError: 7.wav cannot be read\n")
    told = unfinished(table.wanted, features, results)
    assert f"{folder}: not started" in told and "f.made is not there: acl_paper.console.DatasetError: 7.wav cannot be read" in told
    finished(tmp_path / folder, wanted)
    assert "results.csv is not there: not started" in unfinished(table.wanted, features, results)
    (tmp_path / "results.csv").touch()  # empty, as a power cut may leave it
    assert "results.csv is not there" in unfinished(table.wanted, features, results)
    (tmp_path / "results.csv").write_text("subset,alpha\n")
    assert unfinished(table.wanted, features, results) == ""


# What a result depends on

def relabel(data, old, new):
    table = data / "FSDnoisy18k.meta" / "train.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new))


def test_corrected_labels_make_the_cells_out_of_date_that_use_them(tmp_path):
    data = make_data_set(tmp_path / "plain", 12, 2.1)
    relabel(data, "1000.wav,Piano,/m/0,1,0", "1000.wav,Piano,/m/0,0,0")  # one clip nobody has checked
    relabel(data, "1003.wav,Piano,/m/0,1,0", "1003.wav,Piano,/m/0,0,0")
    chosen = {"data": str(data), "dataset": "plain", "alphas": "1", "subsets": "clean noisy", "seeds": "0", "epochs": 1, "runs": str(tmp_path / "runs")}
    before = plan_table(chosen).wanted
    for folder, wanted in before.items():
        finished(tmp_path / folder, wanted)
    assert [differences(folder, wanted) for folder, wanted in plan_table(chosen).wanted.items()] == [[], []]
    relabel(data, "1000.wav,Piano", "1000.wav,Rain")
    clean, noisy = (differences(folder, wanted) for folder, wanted in plan_table(chosen).wanted.items())
    assert clean == [] and len(noisy) == 1 and noisy[0].startswith("table was ")
    encoders = plan_encoders({"data": str(data), "dataset": "plain"})
    assert {wanted["data"]["table"] for wanted in encoders.wanted.values()} == {encoders.data.tables["all"]}


def test_a_run_of_an_earlier_version_says_nothing_of_the_table_and_less_of_the_sounds(tmp_path):
    data = make_data_set(tmp_path / "plain", 12, 2.1)
    (folder, wanted), = plan_table(CELL | {"data": str(data), "dataset": "plain", "runs": str(tmp_path / "runs")}).wanted.items()
    earlier = {name: value for name, value in wanted["data"].items() if name in ("store", "source")}
    finished(tmp_path / folder, wanted | {"data": earlier})
    assert differences(folder, wanted) == []
    finished(tmp_path / folder, wanted | {"data": earlier | {"source": first_edition_fingerprint(data, load_clips(data))}})
    assert differences(folder, wanted) == []
    finished(tmp_path / folder, wanted | {"data": {"store": earlier["store"]}})
    assert differences(folder, wanted) == [f"source was None, is {earlier['source']!r}"]


# Names

NAMES = {
    "project": "the \"project's\" {x} {} \\ ü 🐦; touch P\nnew",
    "data": "da'ta\"; touch D; {}\n{b}",
    "runs": "r; touch R; {} {seed}\n'\"\\ ü 🐦",
    "figures": "-f 'g; $(touch F) `touch F2` \" {subset}",
    "features": "x/fe\"at'; touch E \\ ü 🐦",
}


def test_folders_may_have_any_name(project, tmp_path):
    """A cell and its results in folders whose names are commands, patterns and options; and nothing else is made."""
    root = tmp_path / NAMES["project"]
    shutil.copytree(project, root, ignore=shutil.ignore_patterns(".snakemake", "runs", "figures", "features"))
    data = tmp_path / NAMES["data"]
    shutil.copytree(project / "data" / "mini", data)
    arguments = [f"--{name}={NAMES[name]}" for name in ("runs", "figures", "features")]
    before = contents(root)
    done = reproduce(root, *arguments, dataset="mini", data=data, timeout=900, **CELL)
    assert done.returncode == 0, done.stderr + done.stdout
    made = {name for name in set(contents(root)) - set(before) if not name.startswith(".snakemake")}
    own = tuple(f"{NAMES[name]}/{place}" for name in ("runs", "figures", "features") for place in ("mini/", ".mini.lock"))
    assert [name for name in made if not name.startswith(own)] == []
    assert f"{NAMES['runs']}/mini/clean/alpha=1.0/seed=0/metrics.json" in made and f"{NAMES['figures']}/mini/results.csv" in made
    assert not {"P", "D", "R", "F", "F2", "E"} & {path.name for path in tmp_path.rglob("*")}
    again = reproduce(root, "--more=-n", *arguments, dataset="mini", data=data, **CELL)
    assert "Nothing to be done" in again.stdout + again.stderr


def test_make_in_folders_of_any_name(project, tmp_path):
    """The environment is this one, said to be up to date."""
    root = tmp_path / NAMES["project"]
    shutil.copytree(project, root, ignore=shutil.ignore_patterns(".snakemake", "runs", "figures", "features"))
    (root / ".venv").symlink_to(sys.prefix)
    folders = {"RUNS": "r; touch R; '\"\\ $(touch R2) ü 🐦", "FIGURES": NAMES["figures"]}
    ready = [f"--assume-old=.venv/{name}" for name in (".ready", ".ready-workflow")]
    settings = [f"{name}={value.replace('$', '$$')}" for name, value in folders.items()]
    done = run(["make", *ready, "reproduce", *settings, "DATASET=mini", "ALPHAS=1", "SUBSETS=clean", "SEEDS=0", "SNAKEMAKE=-n"], cwd=root)
    assert done.returncode == 0, done.stderr
    assert f"output: {folders['RUNS']}/mini/clean/alpha=1.0/seed=0" in done.stdout + done.stderr
    assert not {"P", "R", "R2", "F", "F2"} & {path.name for path in tmp_path.rglob("*")}


@pytest.mark.parametrize("name", ["{alpha}", "{}", "a}b", "two\nlines", "line\r", "-rf", "--runs"])
def test_what_a_pattern_cannot_hold_is_reached_by_a_link(name, tmp_path):
    link = linked(str(tmp_path / name) if name[0] != "-" else name, str(tmp_path / "links"))
    assert not set(link) & set("{}\r\n") and os.readlink(link) == os.path.abspath(tmp_path / name if name[0] != "-" else name)


def test_names_that_begin_with_a_tilde(tmp_path, monkeypatch):
    """One that is typed means a home folder, in the notebooks as here; a data set may lie in a folder of such a name."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert plan_table(CELL | {"dataset": "mini", "runs": "~/r", "figures": "f"}).runs == str(tmp_path / "home" / "r")
    with pytest.raises(ValueError, match="~nosuchuser/r: there is no such home folder"):
        plan_table(CELL | {"dataset": "mini", "runs": "~nosuchuser/r"})
    data = make_data_set(tmp_path / "~odd", 12, 2.1)
    assert plan_table(CELL | {"dataset": "plain", "data": str(data)}).data.root == str(data)


@pytest.mark.parametrize("name", ["runs", "my runs", "it's", 'a "b"', "back\\slash", "$(x) `y`; z", "ü", "🐦", "a-b"])
def test_other_names_stay(name, tmp_path):
    assert linked(name, str(tmp_path / "links")) == name and not (tmp_path / "links").exists()


# Another machine

def test_papermill_where_there_is_no_fcntl():
    """As on Windows: papermill loads this package's engine whatever it runs."""
    done = run([sys.executable, "-c", "import sys; sys.modules['fcntl'] = None\nimport papermill.engines as e\nprint(e.papermill_engines.get_engine('acl'))"],
               environ={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and "CellEngine" in done.stdout, done.stderr


def test_papermill_loads_nothing_heavy_with_the_engine():
    """It does so in every cell of a table."""
    program = "import sys\nimport acl_paper.workflow\nprint(*{name.split('.')[0] for name in sys.modules})"
    done = run([sys.executable, "-c", program], environ={"PYTHONPATH": str(ROOT)})
    assert not {"torch", "pandas", "scipy", "h5py", "numba", "librosa", "snakemake", "joblib"} & set(done.stdout.split()), done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="a process cannot be kept to one core here")
def test_one_allowed_core_of_many():
    program = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n" \
              "from acl_paper.workflow import snakemake_command; print(*snakemake_command('settings.json'))"
    done = run([sys.executable, "-c", program], environ={"PYTHONPATH": str(ROOT)})
    assert "--cores 1 " in done.stdout, done.stderr


@pytest.mark.parametrize("named", ["none", "NoDevFiles", "-1", "", " ", "-1,0", "void"])
def test_no_gpu_is_visible(named, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == []


def test_no_gpu_is_asked_for(project):
    call_ = call(project, "--more=-n -p", **CELL)
    call_["env"] |= {"CUDA_VISIBLE_DEVICES": "none"}
    done = subprocess.run(**call_, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "gpu0" not in done.stdout and "export CUDA" not in done.stdout, done.stderr


def test_a_home_folder_that_cannot_be_written_to(project, tmp_path):
    """Not even by root: it is a file."""
    (tmp_path / "home").touch()
    call_ = call(project, "--more=--until features", **CELL | {"dataset": "mini", "features": tmp_path / "features"})
    call_["env"] = {name: value for name, value in call_["env"].items() if not name.startswith("XDG_")} | {"HOME": str(tmp_path / "home")}
    done = subprocess.run(**call_, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "features").glob("mini/*.made"))


# Errors and interruptions in one line

@pytest.mark.parametrize(("arguments", "message"), [
    (["--jobs=-1"], "jobs must be a whole number from 1, got -1"),
    (["--threads=0"], "threads must be a whole number from 1, got 0"),
    (["--gpus=-2"], "gpus must be whole numbers from 0, got -2"),
    (["--cells_per_gpu=0"], "cells_per_gpu must be a whole number from 1, got 0"),
    (["--alphas=one"], "alphas must be numbers from 0 to 1, got one"),
    (["--seeds=-1"], "seeds must be whole numbers from 0, got -1"),
    (["--part=selfsupervised", "--temperatures=inf"], "temperatures must be numbers above 0, got inf"),
    (["--data=~nosuchuser/data"], "~nosuchuser/data: there is no such home folder; write the whole path."),
    (["--runs=Snakefile/runs"], "Snakefile/runs cannot take the runs: Not a directory. Give another folder."),
    (["--figures=/proc/figures"], "/proc/figures cannot take the figures: No such file or directory. Give another folder."),
    (["--more=--until 'train"], "No closing quotation"),
])
def test_errors_are_one_line(project, arguments, message):
    done = reproduce(project, *arguments)
    assert done.returncode not in (0, None)
    assert (done.stderr, done.stdout) == (f"acl_reproduce: {message}\n", "")


def test_a_word_that_is_no_setting():
    for value in ("", " ", ",", "1 2 x", "1e999"):
        with pytest.raises(ValueError, match="alphas must be numbers from 0 to 1"):
            _values("alphas", value)


def interrupted(project, ready, *arguments, **chosen):
    """What a driver says when Ctrl-C is pressed as soon as it is ready."""
    driver = subprocess.Popen(**call(project, *arguments, **chosen), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    wait_for(ready, "the driver to begin")
    os.killpg(driver.pid, signal.SIGINT)
    told = driver.communicate(timeout=120)[0]
    assert driver.returncode != 0 and "Traceback" not in told, told
    return told


def test_ctrl_c_before_anything_has_started(project, tmp_path):
    owner = project / ".snakemake" / "driver.txt"
    owner.unlink(missing_ok=True)
    told = interrupted(project, owner.is_file, dataset="mini", runs=tmp_path, **CELL)
    assert "acl_reproduce: stopped." in told.splitlines()


def test_ctrl_c_in_a_job(project, data, tmp_path):
    told = interrupted(project, lambda: features_log(tmp_path).is_file(), **settings(data, tmp_path))
    assert "stopped: 0 of 1 cells are done; the same command resumes" in told.splitlines() and "have no result" not in told
    assert count("train", planned(project, **settings(data, tmp_path))) == 1


def test_two_drivers(project, data, tmp_path):
    """The second is refused from the first's first moment on, not only when Snakemake has read its rules."""
    owner = project / ".snakemake" / "driver.txt"
    owner.unlink(missing_ok=True)
    first = subprocess.Popen(**call(project, "--more=--until features", **settings(data, tmp_path)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(owner.is_file, "the first driver to begin")
    second = reproduce(project, **settings(data, tmp_path))
    assert second.returncode != 0
    assert second.stderr.count("\n") == 1 and second.stderr.startswith(f"acl_reproduce: this table is being made already, by process {first.pid} on ")
    error = first.communicate(timeout=300)[1]
    assert first.returncode == 0, error
    third = reproduce(project, "--more=--until features", **settings(data, tmp_path))
    assert third.returncode == 0, third.stderr

