"""One cell of the paper's table as a user runs it: the papermill command, what it shows, what it leaves, and what it refuses."""
import functools
import io
import json
import os
import re
import shutil
import sys
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from helpers import REAL_MINI, ROOT, command, contents, copy_of_repository, run, run_acl, run_papermill

from acl_paper.data import load_clips
from acl_paper.evaluation import evaluate
from acl_paper.runs import load_predictions, load_run
from acl_paper.features import FeatureConfig, open_feature_store
from acl_paper.mini import MINI_VERSION, MiniConfig, make_mini
from acl_paper.training import TrainConfig
from acl_paper.patches import make_split

sys.path.insert(0, str(ROOT / "docs"))
import build, keep_executed  # noqa: E402

FILES = {"README.md", "config.json", "history.csv", "model.safetensors", "predictions.csv", "embeddings.npy", "metrics.json",
         "learning_curves.png", "learning_curves.svg", "confusion.png", "confusion.svg"}


def places(folder):
    return ["-r", "runs_dir", folder / "runs", "-r", "features_dir", folder / "data" / "features"]


def outputs(path):
    return [output for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code" for output in cell.outputs]


def text_of(output):
    return output.get("text", "") + "".join(output.get("data", {}).get(kind, "") for kind in ("text/plain", "text/markdown"))


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A copy of the repository whose mini data set is there already, with 360 clips instead of 1,280; 160 in noisy_small."""
    copy = copy_of_repository(tmp_path_factory.mktemp("train"))
    make_mini(copy / "data" / "mini", MiniConfig(clean_per_class=4, noisy_per_class=12, noisy_small_per_class=8, test_per_class=2), n_jobs=1)
    return copy


@pytest.fixture(scope="module")
def mini(repository):
    return repository / "data" / "mini"


CELL = ["-p", "alpha", 0.3, "-p", "subset", "noisy_small", "-p", "seed", 3, "-p", "epochs", 2]


@pytest.fixture(scope="module")
def finished(repository):
    """A run with nothing said of data and folders, as on the first day: the command as it is typed, on the mini data set, into runs."""
    before = set(contents(repository))
    done = run(command("papermill", "nbs/train.ipynb", "out.ipynb", *CELL, "--no-progress-bar", "--log-output"), cwd=repository)
    assert done.returncode == 0, done.stderr
    folder = repository / "runs" / "mini" / "noisy_small" / "alpha=0.3" / "seed=3"
    return SimpleNamespace(folder=folder, log=done.stdout + done.stderr, notebook=repository / "out.ipynb", first=contents(folder), new=set(contents(repository)) - before)


def test_run_folder(finished, repository):
    assert set(finished.first) == FILES
    assert all(len(content) > 100 for content in finished.first.values())
    new = {name for name in finished.new if not name.startswith(str(finished.folder.relative_to(repository)))}
    assert {re.sub(r"[0-9a-f]{8}\.h5", "*.h5", name) for name in new} == {"out.ipynb", "data/features/mini/*.h5", "data/features/mini/*.h5.lock", "runs/mini/noisy_small/alpha=0.3/.seed=3.lock"}


def test_effective_parameters_are_those_asked_for(finished):
    """Papermill only warns when the parameters' tag is lost, and trains with the defaults: so what counts is what was used."""
    config = json.loads(finished.first["config.json"])
    assert TrainConfig(**config["settings"]) == TrainConfig(alpha=0.3, subset="noisy_small", seed=3, epochs=2)
    assert FeatureConfig(**config["features"]) == FeatureConfig()
    assert (config["data"]["name"], config["data"]["synthetic"], len(config["classes"])) == ("mini", True, 20)
    assert {name: count["clips"] for name, count in config["data"]["clips"].items()} == {"training": 136, "validation": 24, "test": 40}
    assert {"python", "torch", "numpy", "acl_paper"} <= set(config["versions"])
    shown = "".join(map(text_of, outputs(finished.notebook)))
    for line in (r"alpha +0\.3", r"subset +noisy_small", r"epochs +2", r"seed +3"):
        assert re.search(rf"^{line}$", shown, re.M), line


def test_history(finished):
    history = pd.read_csv(finished.folder / "history.csv")
    assert history.epoch.tolist() == [1, 2]
    for kind in ("train", "validation"):
        total = 0.3 * history[f"{kind}_first"] + 0.7 * history[f"{kind}_angular"]
        assert np.allclose(history[f"{kind}_loss"], total, rtol=1e-5)
    metrics = json.loads(finished.first["metrics.json"])
    assert metrics["best_epoch"] == history.validation_loss.idxmin() + 1 and metrics["epochs"] == 2


def test_predictions_and_metrics(finished, mini):
    table, clips = load_predictions(finished.folder), load_clips(mini)
    classes = sorted(set(clips.label))
    assert list(table.columns) == ["fname", "truth", "prediction", "n_patches", *classes]
    test = clips[clips.split == "test"]
    assert table.fname.tolist() == test.fname.tolist() and table.truth.tolist() == test.label.tolist()
    probabilities = table[classes].to_numpy()
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-4)  # six digits each are kept
    assert [classes[i] for i in probabilities.argmax(axis=1)] == table.prediction.tolist()
    metrics = json.loads(finished.first["metrics.json"])
    right = (table.truth == table.prediction).sum()
    assert (metrics["n_test_clips"], metrics["accuracy"]) == (40, right / 40)
    p, z = right / 40, 1.959963984540054  # Wilson's interval by its formula
    centre, half = p + z**2 / 80, z * np.sqrt(p * (1 - p) / 40 + z**2 / 6400)
    assert np.allclose([metrics["accuracy_low"], metrics["accuracy_high"]], [(centre - half) / (1 + z**2 / 40), (centre + half) / (1 + z**2 / 40)], atol=1e-9)
    share = [(table.prediction[table.truth == name] == name).mean() for name in classes]
    assert np.isclose(metrics["macro_accuracy"], np.mean(share))
    embeddings = np.load(finished.folder / "embeddings.npy")
    assert embeddings.shape == (40, 48) and (np.linalg.norm(embeddings, axis=1) < 1 + 1e-5).all()


def test_weights_give_the_predictions_again(finished, repository, mini):
    trained, clips = load_run(finished.folder), load_clips(mini)
    store = open_feature_store(next((repository / "data" / "features" / "mini").glob("*.h5")))
    split = make_split(store, clips, trained.settings)
    assert np.array_equal(split.scaler.mean, trained.scaler.mean) and np.array_equal(split.scaler.scale, trained.scaler.scale)
    table, embeddings = evaluate(trained, split.test, clips.fname, device="cpu")
    stored = load_predictions(finished.folder)
    assert table.prediction.tolist() == stored.prediction.tolist()
    assert np.allclose(table[trained.classes], stored[trained.classes], atol=1e-5)  # the number of threads may be another here
    assert np.allclose(embeddings, np.load(finished.folder / "embeddings.npy"), atol=1e-5)


def test_what_the_notebook_shows(finished):
    shown = outputs(finished.notebook)
    assert not any(output.output_type == "error" for output in shown)
    assert sum("image/png" in output.get("data", {}) or "image/svg+xml" in output.get("data", {}) for output in shown) == 2  # learning curves, confusion
    assert sum("<audio" in output.get("data", {}).get("text/html", "") for output in shown) == 4  # the hardest clips
    texts = [text_of(output) for output in shown if text_of(output)]
    assert "SYNTHETIC, not FSDnoisy18k" in "".join(texts[:2])  # said first of all
    metrics = json.loads(finished.first["metrics.json"])
    accuracy = f"{100 * metrics['accuracy']:.1f} % [{100 * metrics['accuracy_low']:.1f}, {100 * metrics['accuracy_high']:.1f}] (n = 40)"
    assert f"clip accuracy {accuracy} on mini (synthetic)" in texts[-1] and str(finished.folder) in texts[-1]


def test_a_run_is_tested_again(finished, repository, mini, tmp_path):
    """By its notebook and by the command: the predictions are those after training, on the same clips."""
    done = run_papermill("test", tmp_path / "out.ipynb", "-p", "run", finished.folder, "-r", "data_dir", mini, "-r", "out_dir", tmp_path / "notebook", cwd=repository)
    assert done.returncode == 0, done.stderr
    asked = run_acl("acl_test", finished.folder, "--data", mini, "--out", tmp_path / "command")
    assert asked.returncode == 0, asked.stderr
    metrics = json.loads((finished.folder / "metrics.json").read_text())
    for how in ("notebook", "command"):
        pd.testing.assert_frame_equal(load_predictions(tmp_path / how), load_predictions(finished.folder), atol=1e-4)
        numbers = json.loads((tmp_path / how / "metrics.json").read_text())
        for name in ("accuracy", "accuracy_low", "n_test_clips", "macro_accuracy", "patch_weighted_micro_accuracy"):
            assert numbers[name] == pytest.approx(metrics[name]), name
    assert (tmp_path / "notebook" / "confusion.png").is_file()


def test_an_executed_notebook_is_kept_for_the_site(finished, repository, tmp_path, monkeypatch):
    """Its outputs stand in the page, with how they came to be; no sound, no path of this machine. Another version's are refused."""
    monkeypatch.setattr(keep_executed, "KEPT", tmp_path / "kept")
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    shutil.copy(finished.notebook, folder / "train.ipynb")
    kept = keep_executed.keep("train", folder, folder, repository).read_text()
    assert "<audio" not in kept and str(repository) not in kept
    page = build.site_notebook(ROOT / "nbs" / "train.ipynb")
    shown = json.dumps([cell.get("outputs", []) for cell in page.cells])
    assert "clip accuracy" in shown and "image/png" in shown and "audio" not in shown
    assert len(re.findall(r"training  \d+/\d+ epochs", shown)) == 1
    origin = build.origin(ROOT / "nbs" / "train.ipynb")
    assert "synthetic mini data set" in origin and "`alpha=0.3`" in origin and f"mini {MINI_VERSION}" in origin and "runs_dir" not in origin
    notebook = nbformat.read(folder / "train.ipynb", 4)
    notebook.cells[-2].source += " # another"
    nbformat.write(notebook, folder / "train.ipynb")
    with pytest.raises(SystemExit, match="executed from another version"):
        keep_executed.keep("train", folder, folder)


def test_progress_in_the_log(finished):
    assert re.search(r"features  360/360 clips  [\d.]+ clips/s", finished.log)
    assert re.search(r"training  2/2 epochs  .*loss [\d.]+  validation [\d.]+", finished.log)
    assert "\r" not in finished.log


@pytest.fixture(scope="module")
def repeated(finished, repository, tmp_path_factory):
    """The same cell once more, into the same folder, with everything named, and from elsewhere."""
    out = tmp_path_factory.mktemp("repeated") / "again.ipynb"
    done = run_papermill("train", out, *CELL, "-r", "dataset", "mini", "-r", "data_dir", repository / "data" / "mini", *places(repository))
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(contents=contents(finished.folder), log=done.stdout + done.stderr)


def test_the_same_cell_gives_the_same_weights(finished, repeated):
    """Bit for bit, on one machine with the same number of threads; only times may differ."""
    assert set(repeated.contents) == FILES
    for name in ("model.safetensors", "predictions.csv", "embeddings.npy", "config.json"):
        assert repeated.contents[name] == finished.first[name], name
    first, again = (pd.read_csv(io.BytesIO(content["history.csv"])).drop(columns="seconds") for content in (finished.first, repeated.contents))
    assert first.equals(again)
    assert "clips/s" not in repeated.log  # the features were there


# What is refused

WRONG = {
    "alpha above 1": (["-p", "alpha", 1.5], ["alpha must be a number between 0", "1.5"]),
    "alpha not a number": (["-p", "alpha", "abc"], ["alpha must be a number between 0", "'abc'"]),
    "unknown subset": (["-p", "subset", "cleen", "-r", "data_dir", "{mini}"], ["There is no subset 'cleen'", "-p subset all"]),
    "unknown parameter": (["-p", "aplha", 0.3], ["unknown parameter aplha", "alpha"]),
    "not the layout": (["-r", "data_dir", "{empty}"], ["is not a data set", "clips.csv", "a folder per class", "FSDnoisy18k.meta/train.csv"]),
    "no such folder": (["-r", "data_dir", "{empty}/nowhere"], ["data_dir is", "nowhere", "not a folder"]),
}
SHORT = ("unknown subset", "unknown parameter")  # the others end like these, with what TrainConfig and locate_dataset say


@pytest.fixture(scope="module")
def refused(repository, repeated, tmp_path_factory):
    """A function of a name: the finished process and its folder; "changed audio" is the finished cell again after a clip has been changed."""
    folders = {name: tmp_path_factory.mktemp("refused") for name in WRONG}
    empty, changed = tmp_path_factory.mktemp("empty"), tmp_path_factory.mktemp("changed") / "mini"
    (empty / "notes.txt").write_text("nothing of interest")
    shutil.copytree(repository / "data" / "mini", changed, copy_function=os.link)
    clip = next((changed / "FSDnoisy18k.audio_train").iterdir())
    clip.unlink()
    clip.write_bytes(b"no longer a sound")

    @functools.cache
    def attempt(name):
        if name == "changed audio":
            return run_papermill("train", changed.parent / "out.ipynb", *CELL, "-r", "dataset", "mini", "-r", "data_dir", changed, *places(repository)), repository
        arguments = [str(argument).format(empty=empty, mini=repository / "data" / "mini") for argument in WRONG[name][0]]
        arguments += [] if "data_dir" in arguments else ["-r", "data_dir", empty]
        return run_papermill("train", folders[name] / "out.ipynb", *arguments, *places(folders[name])), folders[name]

    return attempt


def printed(done):
    return re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)  # without colours


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in SHORT else pytest.mark.long) for name in WRONG])
def test_refused(refused, name):
    done, folder = refused(name)
    assert done.returncode != 0
    for text in WRONG[name][1]:
        assert text in printed(done), text
    assert list(folder.rglob("metrics.json")) == list(folder.rglob("config.json")) == list(folder.rglob("*.h5")) == []


def test_a_failing_rerun_leaves_a_finished_run_as_it_is(refused, repeated, finished):
    done, _ = refused("changed audio")
    assert done.returncode != 0 and "was made from other audio files" in printed(done)
    assert contents(finished.folder) == repeated.contents


# Real sounds

@pytest.fixture(scope="module")
def real(tmp_path_factory):
    if not REAL_MINI.is_dir():
        pytest.skip("../shared/data/real-mini, 140 real clips, is not here")
    base = tmp_path_factory.mktemp("real")
    done = run_papermill("train", base / "out.ipynb", "-p", "epochs", 2, "-p", "data_dir", os.path.relpath(REAL_MINI, ROOT), "-p", "dataset", "real-mini", *places(base))
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(base=base, folder=base / "runs" / "real-mini" / "clean" / "alpha=0.5" / "seed=0")


def test_real_audio(real):
    assert set(contents(real.folder)) == FILES
    config, metrics = (json.loads((real.folder / name).read_text()) for name in ("config.json", "metrics.json"))
    assert TrainConfig(**config["settings"]) == TrainConfig(alpha=0.5, subset="clean", epochs=2)
    assert (config["data"]["name"], config["data"]["synthetic"]) == ("real-mini", False)
    assert metrics["n_test_clips"] == 40
    assert 0 < config["data"]["clips"]["validation"]["patches"] < 64  # on which the released code crashes
    shown = "".join(map(text_of, outputs(real.base / "out.ipynb")))
    assert "data set real-mini" in shown and "synthetic" not in shown.lower()


def test_classes_are_those_of_the_data(real):
    """17 of FSDnoisy18k's 20."""
    classes = sorted(set(load_clips(REAL_MINI).label))
    assert len(classes) == 17
    table, trained = load_predictions(real.folder), load_run(real.folder)
    assert list(table.columns[4:]) == trained.classes == classes and trained.network.n_classes == 17
    assert np.isclose((table.truth == table.prediction).mean(), json.loads((real.folder / "metrics.json").read_text())["accuracy"])
