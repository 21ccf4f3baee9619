"""The console command acl_mini, which needs processes of its own."""
import json
import os
import shutil
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


def test_makes_the_whole_set(made):
    project, done = made
    root = project / "data" / "mini"
    assert f"is in {root}" in done.stdout and "synthetic" in done.stdout
    assert "1200/1200 clips" in done.stdout
    clips = load_clips(root)
    assert dataset_summary(clips).drop_duplicates().values.tolist() == [[48, 12, 36, 8, 12]]
    assert missing_audio(root, clips) == []
    assert len(list(root.glob("*/*.wav"))) == 1200
    description = json.loads((root / "dataset.json").read_text())
    assert (description["name"], description["synthetic"], description["seed"], description["version"]) == ("mini", True, 0, MINI_VERSION)
    assert [p.name for p in root.parent.iterdir()] == ["mini"]
    minutes = pd.read_csv(root / "FSDnoisy18k.meta/mini_manifest.csv")["duration_s"].sum() / 60
    assert 40 < minutes < 50


def test_second_time_makes_nothing(made):
    project, _ = made
    root = project / "data" / "mini"
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    done = acl_mini("--dest", root, cwd=project)
    assert done.returncode == 0 and f"is in {root}" in done.stdout and "clips/s" not in done.stdout
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


def test_another_seed_is_refused_with_what_to_do(made):
    project, _ = made
    done = acl_mini("--seed", "1", cwd=project)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "seed 0, not 1" in done.stderr and "give another folder" in done.stderr


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


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_stopped_midway_leaves_nothing_under_the_name(tmp_path, stop):
    process = subprocess.Popen([COMMAND, "--dest", tmp_path / "mini"], cwd=tmp_path, start_new_session=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("mini.*.part/*/*.wav"))) < 20:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, stop)
    assert process.wait(timeout=60) != 0
    assert not (tmp_path / "mini").exists()
    parts = list(tmp_path.glob("mini.*.part"))
    if stop == signal.SIGINT: assert parts == []
    for part in parts: shutil.rmtree(part)
