"""Data of one's own, from a table or from folders, through the notebooks that papermill runs."""
import csv
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import soundfile
from helpers import run_acl, run_papermill

from acl_paper.data import load_clips
from acl_paper.features import extract_features

CLASSES = {"Low": 200, "None": 800, "high notes": 3200}  # Hz; the second is a class like any other
N_CLIPS = 10  # of each class


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """class -> the files of its clips: 2.1 seconds of a tone in noise, at 16 kHz."""
    folder, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    files = {}
    for label, frequency in CLASSES.items():
        files[label] = [folder / f"{frequency}-{i}.wav" for i in range(N_CLIPS)]
        for file in files[label]:
            time = np.arange(33_600) / 16_000
            tone = np.sin(2 * np.pi * frequency * rng.uniform(0.9, 1.1) * time)
            soundfile.write(file, 0.4 * tone + rng.uniform(-0.1, 0.1, len(time)), 16_000)
    return files


def write_table(root, rows, columns):
    with open(root / "clips.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


@pytest.fixture(scope="module")
def table(sounds, tmp_path_factory):
    """A clips.csv of paths and labels, and nothing else."""
    root = tmp_path_factory.mktemp("data") / "from-a-table"
    (root / "clips").mkdir(parents=True)
    for file in sum(sounds.values(), []):
        shutil.copy(file, root / "clips")
    write_table(root, [(f"clips/{file.name}", label) for label, files in sounds.items() for file in files], ["path", "label"])
    return root


@pytest.fixture(scope="module")
def folders(sounds, tmp_path_factory):
    """A folder per class, below train and test."""
    root = tmp_path_factory.mktemp("data") / "from-folders"
    for label, files in sounds.items():
        for i, file in enumerate(files):
            place = root / ("test" if i < 3 else "train") / label
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
    return root


def papermill(notebook, out, *arguments):
    arguments = [*arguments, "-r", "runs_dir", out / "runs", "-r", "features_dir", out / "features"]
    done = run_papermill(notebook, out / "out.ipynb", *arguments)
    return SimpleNamespace(code=done.returncode, log=re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr), out=out)


@pytest.mark.parametrize("layout", ["table", pytest.param("folders", marks=pytest.mark.long)])
def test_training(layout, request, tmp_path):
    root = request.getfixturevalue(layout)
    done = papermill("train", tmp_path, "-r", "data_dir", root, "-p", "epochs", 2)
    assert done.code == 0, done.log
    folder = tmp_path / "runs" / root.name / "all" / "alpha=0.5" / "seed=0"
    assert json.loads((folder / "metrics.json").read_text())["n_test_clips"] == {"table": 6, "folders": 9}[layout]
    predictions = pd.read_csv(folder / "predictions.csv", keep_default_na=False)
    assert set(predictions.truth) == set(CLASSES) <= set(predictions.columns)
    assert all((root / name).is_file() for name in predictions.fname)
    assert ("marks no test clips: 6 of 30 are taken" in done.log) == (layout == "table")


def test_a_subset_that_is_not_there(table, tmp_path):
    """The message says what to type, and nothing was made before."""
    done = papermill("train", tmp_path, "-r", "data_dir", table, "-p", "subset", "clean", "-p", "epochs", 2)
    assert done.code != 0 and "There is no subset 'clean'" in done.log and "-p subset all" in done.log
    assert not (tmp_path / "features").exists() and not (tmp_path / "runs").exists()


def test_pretraining(table, tmp_path):
    """All clips but a share of every class, on which it is watched."""
    small = ["-p", "epochs", 2, "-p", "width", 4, "-p", "batch_size", 8]
    done = papermill("pretrain", tmp_path, "-r", "data_dir", table, *small)
    assert done.code == 0, done.log
    (metrics,) = (tmp_path / "runs" / table.name / "pretrain").rglob("metrics.json")
    assert json.loads((metrics.parent / "config.json").read_text())["data"]["clips"] == {"pre-training, labels unused": 20, "watching": 4, "test": 6}


def test_features_stay_when_the_split_changes(table, tmp_path):
    """What a clip sounds like does not depend on what it is used for."""
    root = shutil.copytree(table, tmp_path / "data")
    with pytest.warns(UserWarning, match="6 of 30"):
        store = extract_features(root, tmp_path / "x.h5", report_every_s=None)
        clips = load_clips(root)
    write_table(root, [(path, label, "test" if i % 2 else "train") for i, (path, label) in enumerate(zip(clips.path, clips.label))],
                ["path", "label", "split"])
    assert load_clips(root).split.tolist().count("test") == 15
    assert extract_features(root, tmp_path / "x.h5", report_every_s=None).source == store.source


def test_a_clip_that_is_not_there_is_named(table, tmp_path):
    root = shutil.copytree(table, tmp_path / "data")
    (root / "clips" / "800-3.wav").unlink()
    done = run_acl("acl_features", "--data_dir", root, "--features_dir", tmp_path / "features")
    assert done.returncode != 0 and "clips/800-3.wav" in done.stderr and "Traceback" not in done.stderr
