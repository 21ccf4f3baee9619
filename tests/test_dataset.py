"""`acl_dataset`: real clips in three layouts to a trained network, folds to a table of results, and what is refused."""
import csv
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile
from helpers import REAL_MINI, run_acl, run_papermill
from test_workflow import project, reproduce  # noqa: F401

from acl_paper.data import load_clips
from acl_paper.results import collect_runs


def dataset(folder, *options):
    return run_acl("acl_dataset", folder, *options)


def write_csv(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


# Real clips

@pytest.fixture(scope="module")
def real_clips():
    """The real clips with a fold and a source each: two sources a class in each of three folds."""
    if not REAL_MINI.is_dir():
        pytest.skip("../shared/data/real-mini, 140 real clips, is not here")
    clips = load_clips(REAL_MINI)
    place = clips.groupby("label").cumcount()
    return clips.assign(fold=place % 3 + 1, source=clips.label + "-" + (place % 6).astype(str), file=[f"{i}.wav" for i in range(len(clips))])


def in_class_folders(clips, root):
    for clip in clips.itertuples():
        (root / clip.label).mkdir(parents=True, exist_ok=True)
        shutil.copy(REAL_MINI / clip.path, root / clip.label / clip.file)
    return ["--write"]


def like_esc50(clips, root):
    (root / "audio").mkdir(parents=True)
    for clip in clips.itertuples():
        shutil.copy(REAL_MINI / clip.path, root / "audio" / clip.file)
    write_csv(root / "meta" / "esc50.csv", [
        {"filename": clip.file, "fold": clip.fold, "target": clip.label_id, "category": clip.label, "esc10": False, "src_file": clip.source, "take": "A"}
        for clip in clips.itertuples()])
    return ["--csv", "meta/esc50.csv", "--path", "filename", "--label", "category", "--fold", "fold", "--test-fold", "3", "--group", "src_file"]


def in_a_table(clips, root):
    for clip in clips.itertuples():
        (root / "site").mkdir(parents=True, exist_ok=True)
        shutil.copy(REAL_MINI / clip.path, root / "site" / clip.file)
    write_csv(root / "all clips.csv", [
        {"recording no": clip.file.removesuffix(".wav"), "what": clip.label, "checked": "yes" if clip.manually_verified else "no", "by": clip.source}
        for clip in clips.itertuples()])
    return ["--csv", "all clips.csv", "--path", "site/{recording no}.wav", "--label", "what", "--verified", "checked", "--group", "by"]


LAYOUTS = {"class folders": (in_class_folders, "all"), "like ESC-50": (like_esc50, "all"), "a table": (in_a_table, "clean")}


@pytest.mark.parametrize("layout", [pytest.param(layout, marks=[] if layout == "a table" else pytest.mark.long) for layout in LAYOUTS])
def test_real_clips_to_a_trained_network(layout, real_clips, tmp_path):
    arrange, subset = LAYOUTS[layout]
    root = tmp_path / "own-data"
    done = dataset(root, *arrange(real_clips, root))
    assert done.returncode == 0, done.stderr
    assert f"{len(real_clips)} clips of 17 classes" in done.stdout and "sample rates: 44100 Hz" in done.stdout
    clips = load_clips(root)
    assert sorted(clips.label) == sorted(real_clips.label)
    if "group" in clips:
        assert clips.groupby("group").split.nunique().max() == 1

    places = ["-r", "runs_dir", tmp_path / "runs", "-r", "features_dir", tmp_path / "features"]
    done = run_papermill("train", tmp_path / "out.ipynb", "-r", "data_dir", root, "-p", "alpha", 0.5, "-p", "epochs", 1, *places)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "own-data" / subset / "alpha=0.5" / "seed=0"
    predictions = pd.read_csv(folder / "predictions.csv")
    assert sorted(predictions.fname) == sorted(clips.path[clips.split == "test"])
    if layout == "like ESC-50":
        assert set(clips.fold[clips.split == "test"]) == {"3"}


# Folds

def sound(file, frequency, seed):
    rng = np.random.default_rng(seed)
    time = np.arange(33_600) / 16_000
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, 0.4 * np.sin(2 * np.pi * frequency * rng.uniform(0.9, 1.1) * time) + rng.uniform(-0.1, 0.1, len(time)), 16_000)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """ESC-50's layout with generated sounds: three classes of four clips in each of three folds."""
    root = tmp_path_factory.mktemp("data") / "esc"
    rows = []
    for number, (fold, target, take) in enumerate((fold, target, take) for fold in (1, 2, 3) for target in range(3) for take in "ABCD"):
        source = 100 * fold + 10 * target + "ABCD".index(take) // 2
        name = f"{fold}-{source}-{take}-{target}.wav"
        sound(root / "audio" / name, (300, 1000, 3000)[target], number)
        rows.append({"filename": name, "fold": fold, "target": target, "category": ("low", "middle", "high")[target], "esc10": "True", "src_file": source, "take": take})
    write_csv(root / "meta" / "esc50.csv", rows)
    return root


def test_a_look_writes_nothing_and_says_what_to_type(sounds, tmp_path):
    root = shutil.copytree(sounds, tmp_path / "esc")
    before = sorted(root.rglob("*"))
    done = dataset(root)
    assert done.returncode == 0, done.stderr
    assert "ESC-50's layout" in done.stdout and "--csv meta/esc50.csv --path 'audio/{filename}' --label category --fold fold --group src_file" in done.stdout
    assert f"acl_dataset {root} --write" in done.stdout
    assert sorted(root.rglob("*")) == before
    assert dataset(root, "--write").returncode == 0
    assert "fold 3" in (root / "clips_report.md").read_text()
    assert (root / "clips.csv").read_text().startswith("path,label,fold,group\naudio/1-100-A-0.wav,low,1,100\n")
    assert "a clips.csv" in dataset(root).stdout


def test_folds_are_planned(sounds, project, tmp_path):  # noqa: F811
    root = shutil.copytree(sounds, tmp_path / "esc")
    assert dataset(root, "--write").returncode == 0
    cells = dict(data=root, alphas="0.5", seeds="0", epochs=1, runs=tmp_path / "runs", figures=tmp_path / "figures", features=tmp_path / "features")
    assert reproduce(project, "--more=-n", **cells).stdout.count("rule train:") == 3
    assert reproduce(project, "--more=-n", **cells, folds="2").stdout.count("rule train:") == 1
    wrong = reproduce(project, **cells, folds="2 7")
    assert wrong.returncode != 0 and wrong.stderr == "acl_reproduce: folds must be among 1, 2, 3, got '7'\n"


@pytest.mark.long
def test_cross_validation(sounds, project, tmp_path):  # noqa: F811
    """Every fold is tested on, unless some are named; the table has their mean, and an interval by all of their clips."""
    root = shutil.copytree(sounds, tmp_path / "esc")
    assert dataset(root, "--write").returncode == 0
    folders = {name: tmp_path / name for name in ("runs", "figures", "features")}
    cells = dict(data=root, alphas="0.5", seeds="0", epochs=1, **folders)
    done = reproduce(project, **cells, timeout=900)
    assert done.returncode == 0, done.stderr

    runs = collect_runs(folders["runs"], "esc")
    assert runs.test_fold.tolist() == ["1", "2", "3"]
    assert runs.folder[0] == folders["runs"] / "esc" / "all" / "test_fold=1" / "alpha=0.5" / "seed=0"
    for run_ in runs.itertuples():
        tested = pd.read_csv(run_.folder / "predictions.csv").fname
        assert len(tested) == 12 and tested.str.startswith(f"audio/{run_.test_fold}-").all()
        assert run_.config["settings"]["test_fold"] == run_.test_fold
    results = pd.read_csv(folders["figures"] / "esc" / "results.csv").query("subset == 'all' and n_seeds > 0").set_index("alpha")
    assert results.loc[0.5, "mean"] == pytest.approx(runs.accuracy.mean(), abs=1e-5)
    assert results.n_seeds.tolist() == [1]
    assert "3 fold(s), 36 test clips" in json.dumps(json.loads((folders["figures"] / "esc" / "results.ipynb").read_text()))

    again = reproduce(project, "--more=-n", **cells)
    assert "rule train:" not in again.stdout


# What is refused

def first_row(root, **cells):
    """Change the first row of the table."""
    file = root / "meta" / "esc50.csv"
    rows = list(csv.DictReader(file.read_text().splitlines()))
    rows[0] |= cells
    write_csv(file, rows)


def copy_a_clip(root, to="3-300-A-0.wav"):
    shutil.copy(root / "audio" / "1-100-A-0.wav", root / "audio" / to)


def cut(root):
    file = root / "audio" / "1-100-A-0.wav"
    file.write_bytes(file.read_bytes()[:-1000])


COLUMNS = ["--csv", "meta/esc50.csv", "--path", "filename", "--label", "category", "--fold", "fold", "--group", "src_file"]
WRONG = {  # what is done to the folder, the options, and what the one line says
    "missing column": (None, ["--csv", "meta/esc50.csv", "--path", "filename", "--label", "kind"], "meta/esc50.csv has no column kind; its columns are"),
    "path outside": (lambda root: first_row(root, filename="../../secret.wav"), COLUMNS, "line 2 has '../../secret.wav', which leads out of the data set's folder"),
    "empty label": (lambda root: first_row(root, category=" "), COLUMNS, "meta/esc50.csv: line 2 has no category"),
    "no such fold": (None, [*COLUMNS, "--test-fold", "9"], "has no fold '9' to test on: its folds are 1, 2, 3"),
    "one file twice": (lambda root: first_row(root, filename="1-100-B-0.wav"), COLUMNS, "lists 1 clips more than once"),
    "a copy on two sides": (copy_a_clip, COLUMNS, "sounds on two sides: 1 (audio/1-100-A-0.wav (1) = audio/3-300-A-0.wav (3)). Keep one of each, or: --allow-duplicates"),
    "a class in one fold": (lambda root: first_row(root, category="bark"), COLUMNS, "the class 'bark' is in fold 1 only"),
    "no such table": (None, ["--csv", "meta/no.csv", "--path", "filename", "--label", "category"], "meta/no.csv: No such file or directory"),
    "a column without a table": (None, ["--label", "category"], "--label names a column: say of which table, --csv FILE"),
    "nothing in the folder": (lambda root: [shutil.rmtree(root / name) for name in ("audio", "meta")], [], "is not a data set"),
    "a table that is there": (lambda root: (root / "clips.csv").write_text("path,label\n"), COLUMNS, "clips.csv is there and says something else; move it, or replace it: --force"),
}


@pytest.mark.parametrize("name", WRONG)
def test_refused_in_one_line(name, sounds, tmp_path):
    damage, options, message = WRONG[name]
    root = shutil.copytree(sounds, tmp_path / "esc")
    if damage:
        damage(root)
    done = dataset(root, *options)
    assert done.returncode not in (0, None)
    line = done.stderr.splitlines()[0]
    assert line.startswith("acl_dataset: ") and message in line, done.stderr
    assert len(done.stderr.splitlines()) == 1 or name == "nothing in the folder"  # where the ways in are listed
    assert not (root / "clips_report.md").exists() and (root / "clips.csv").exists() == (name == "a table that is there")


def test_files_that_cannot_be_read_are_named_and_left_out_where_asked(sounds, tmp_path):
    root = shutil.copytree(sounds, tmp_path / "esc")
    cut(root)
    (root / "audio" / "2-200-A-0.wav").unlink()
    done = dataset(root, *COLUMNS)
    assert done.returncode != 0 and not (root / "clips.csv").exists()
    first, second, last = done.stderr.splitlines()
    assert "1-100-A-0.wav: cut short" in first and "2-200-A-0.wav: no such file" in second
    assert last.endswith("2 of 36 audio files cannot be used (above); repair them, or leave them out: --skip-bad")
    assert dataset(root, *COLUMNS, "--skip-bad").returncode == 0
    assert len(load_clips(root)) == 34
    assert "left out, as they cannot be used: audio/1-100-A-0.wav, audio/2-200-A-0.wav" in (root / "clips_report.md").read_text()


def test_copies_are_counted_where_they_are_allowed(sounds, tmp_path):
    root = shutil.copytree(sounds, tmp_path / "esc")
    copy_a_clip(root)
    assert dataset(root, *COLUMNS, "--allow-duplicates").returncode == 0
    assert "copies of other clips: 1, on two sides 1" in (root / "clips_report.md").read_text()
    copy_a_clip(root, to="1-100-B-0.wav")
    copy_a_clip(root, to="3-300-A-0.wav")
    (root / "audio" / "3-300-A-0.wav").write_bytes((root / "audio" / "3-300-B-0.wav").read_bytes())
    assert dataset(root, *COLUMNS, "--force").returncode == 0  # within a fold they are no error
    assert "copies of other clips: 2, on two sides 0" in (root / "clips_report.md").read_text()


def test_a_class_with_one_clip_is_noted_and_stays_in_training(sounds, tmp_path):
    root = shutil.copytree(sounds, tmp_path / "esc")
    first_row(root, category="bark")
    done = dataset(root, "--csv", "meta/esc50.csv", "--path", "filename", "--label", "category")
    assert done.returncode == 0, done.stderr
    assert "too small to be tested on, no test clip: bark" in done.stdout
    assert "too small to be validated on, a single training clip: bark" in done.stdout
    clips = load_clips(root)
    assert clips.split[clips.label == "bark"].tolist() == ["train"]
    assert clips[clips.split == "test"].groupby("label").size().tolist() == [2, 2, 2]
