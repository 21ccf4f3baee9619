"""The console command acl_mini, which needs processes of its own."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from acl_paper.data import dataset_summary, load_clips, locate_dataset, missing_audio
from acl_paper.mini import MINI_VERSION

COMMAND = Path(sys.executable).with_name("acl_mini")


def acl_mini(*arguments, cwd):
    return subprocess.run([COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The whole set as the command makes it in an empty project, and what the command printed."""
    project = tmp_path_factory.mktemp("project")
    done = acl_mini(cwd=project)
    assert done.returncode == 0, done.stderr
    return project, done


@pytest.mark.long
def test_makes_the_whole_set(made):
    project, done = made
    root = project / "data" / "mini"
    assert f"is in {root}" in done.stdout and "synthetic" in done.stdout
    assert "1280/1280 clips" in done.stdout
    clips = load_clips(root)
    assert dataset_summary(clips).drop_duplicates().values.tolist() == [[52, 8, 44, 12, 12]]
    assert missing_audio(root, clips) == []
    assert len(list(root.glob("*/*.wav"))) == 1280
    description = json.loads((root / "dataset.json").read_text())
    assert (description["name"], description["synthetic"], description["seed"], description["version"]) == ("mini", True, 0, MINI_VERSION)
    assert [p.name for p in root.parent.iterdir()] == ["mini"]
    minutes = pd.read_csv(root / "FSDnoisy18k.meta/mini_manifest.csv")["duration_s"].sum() / 60
    assert 40 < minutes < 50


@pytest.mark.long
def test_second_time_makes_nothing(made):
    project, _ = made
    root = project / "data" / "mini"
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    done = acl_mini("--dest", root, cwd=project)
    assert done.returncode == 0 and f"is in {root}" in done.stdout and "clips/s" not in done.stdout
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


@pytest.mark.long
def test_another_seed_is_refused_with_what_to_do(made):
    project, _ = made
    done = acl_mini("--seed", "1", cwd=project)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "seed 0, not 1" in done.stderr and "give another folder" in done.stderr


@pytest.mark.long
def test_found_by_name(made, monkeypatch):
    project, _ = made
    monkeypatch.chdir(project)
    monkeypatch.delenv("ACL_DATA", raising=False)
    assert locate_dataset() == locate_dataset("mini") == ("mini", project / "data" / "mini", True)


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    done = acl_mini("--dest", tmp_path, cwd=tmp_path)
    assert done.returncode != 0 and "not a mini data set" in done.stderr and "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def start(folder, *arguments):
    """The command in a session of its own, once it has written some clips."""
    process = subprocess.Popen([COMMAND, "--dest", folder / "mini", *arguments], cwd=folder, start_new_session=True,
                               text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    before = set(folder.glob("mini.*.part"))
    deadline = time.monotonic() + 120
    while not any(len(list(part.glob("*/*.wav"))) >= 20 for part in set(folder.glob("mini.*.part")) - before):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_stopped_midway_leaves_nothing_under_the_name(tmp_path, stop):
    process = start(tmp_path)
    os.killpg(process.pid, stop)
    told = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert not (tmp_path / "mini").exists()
    if stop == signal.SIGINT:
        assert list(tmp_path.iterdir()) == [] and told.strip() == "acl_mini: stopped."


def test_leftovers_of_the_killed_are_swept_and_those_of_the_living_are_not(tmp_path):
    killed = start(tmp_path)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    of_killed = set(tmp_path.iterdir())
    (tmp_path / "mini.0123abcd.part").mkdir()  # as an earlier version left it, two days ago
    os.utime(tmp_path / "mini.0123abcd.part", (time.time() - 172_800,) * 2)
    (tmp_path / "minimal.0123abcd.part").mkdir()  # of another set, and of somebody else
    (tmp_path / "mini.notes.part").mkdir()
    living = start(tmp_path)
    of_living = {path for path in tmp_path.glob("mini.????????.*") if path not in of_killed}
    assert of_killed and not of_killed & set(tmp_path.iterdir()) and len(of_living) == 2
    other = start(tmp_path)
    assert of_living < set(tmp_path.iterdir())
    for process in (living, other):
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mini.notes.part", "minimal.0123abcd.part"]
