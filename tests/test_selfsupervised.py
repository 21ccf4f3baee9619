"""The self-supervised half as a user runs it: the two notebooks, a run that is killed, the published weights and embeddings, real sounds."""
import functools
import http.server
import json
import os
import shutil
import signal
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import FORKS, REAL_MINI, REFERENCE, SHARED, run_papermill
from nbformat import read

from acl_paper.download import download_files, published_sums
from acl_paper.networks import PUBLISHED_WEIGHTS, load_published_encoder, untrained_head
from acl_paper.log_mel import FeatureConfig
from acl_paper.mini import make_mini
from acl_paper.patches import ClipFrames, ClipSplit
from acl_paper.pretraining import PretrainConfig, fit
from acl_paper.runs import save_run

TINY = ["-p", "epochs", 2, "-p", "width", 8, "-p", "batch_size", 16, "-p", "checkpoint_every_s", 0]


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    """A tiny mini data set."""
    folder = tmp_path_factory.mktemp("mini") / "mini"
    make_mini(folder, clean_per_class=2, noisy_per_class=3, noisy_small_per_class=1, test_per_class=2, every_s=None)
    return folder


def places(folder, data_dir):
    return ["-r", "data_dir", data_dir, "-r", "features_dir", folder / "features", "-r", "runs_dir", folder / "runs"]


def outputs(path):
    """Everything the cells of an executed notebook printed or showed as text."""
    cells = [cell for cell in read(path, 4).cells if cell.cell_type == "code"]
    return "\n".join(str(o.get("text", "") or o.get("data", {}).get("text/markdown", "") or o.get("data", {}).get("text/plain", "")) for c in cells for o in c.outputs)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, mini):
    """pretrain.ipynb on the tiny mini data set: its base folder and run folder."""
    base = tmp_path_factory.mktemp("selfsupervised")
    done = run_papermill("pretrain", base / "pretrain.ipynb", "-p", "alpha", 0.4, "-p", "temperature", 0.1, "-p", "seed", 5, "-r", "dataset", "mini", *TINY, *places(base, mini))
    assert done.returncode == 0, done.stderr[-3000:]
    return base, base / "runs" / "mini" / "pretrain" / "resnet18" / "alpha=0.4" / "temperature=0.1" / "seed=5"


def test_pretraining_leaves_a_run_folder(pretrained):
    base, folder = pretrained
    config = json.loads((folder / "config.json").read_text())
    expected = dict(alpha=0.4, temperature=0.1, seed=5, epochs=2, width=8, batch_size=16, network="resnet18", reduction="released")
    assert {name: config["settings"][name] for name in expected} == expected
    assert (config["kind"], config["data"]["synthetic"]) == ("pretraining", True)
    history = pd.read_csv(folder / "history.csv")
    assert list(history.epoch) == [1, 2] and np.isfinite(history[["train_loss", "train_first", "train_angular"]]).all(axis=None)
    np.testing.assert_allclose(history.train_loss, 0.4 * history.train_first + 0.6 * history.train_angular, rtol=1e-5)
    assert 0 <= json.loads((folder / "metrics.json").read_text())["validation_accuracy"] <= 1
    assert {"README.md", "model.safetensors", "learning_curves.svg", "neighbours.png"} <= {path.name for path in folder.iterdir()}
    assert not list(folder.glob(".*part*"))
    shown = outputs(base / "pretrain.ipynb")
    assert "not FSDnoisy18k" in shown and "epochs" in shown


@pytest.mark.parametrize("task, subset", [("linear", "noisy"), ("linear", "clean"), ("finetune", "noisy")])
def test_probe(pretrained, mini, tmp_path, task, subset):
    base, folder = pretrained
    done = run_papermill("probe", tmp_path / "probe.ipynb", "-p", "task", task, "-p", "subset", subset, "-p", "alpha", 0.4, "-p", "temperature", 0.1, "-p", "seed", 5,
                     "-p", "epochs", 2, "-r", "dataset", "mini", *places(base, mini))
    assert done.returncode == 0, done.stderr[-3000:]
    left = folder / f"{task}-{subset}" / "seed=271828"
    metrics, predictions = json.loads((left / "metrics.json").read_text()), pd.read_csv(left / "predictions.csv")
    right = predictions.truth == predictions.prediction
    assert metrics["n_test_clips"] == len(predictions) == 40 and metrics["epochs"] == 2
    assert metrics["accuracy"] == pytest.approx(right.mean()) and metrics["patch_weighted_micro_accuracy"] == pytest.approx(np.average(right, weights=predictions.n_patches))
    np.testing.assert_allclose(predictions.iloc[:, 4:].sum(axis=1), 1, atol=1e-4)
    assert json.loads((left / "config.json").read_text())["settings"]["task"] == task
    assert "paired over 40 test clips" in outputs(tmp_path / "probe.ipynb")


@pytest.mark.parametrize("name, arguments, says", [
    ("pretrain", ["-p", "alfa", 0.5], "unknown parameter alfa"),
    pytest.param("pretrain", ["-p", "alpha", 1.5], "alpha must be a number between 0", marks=pytest.mark.long),
    pytest.param("pretrain", ["-p", "preset", "large"], "preset must be one of paper, small", marks=pytest.mark.long),
    pytest.param("probe", ["-p", "task", "knn"], "task must be one of linear, finetune", marks=pytest.mark.long),
    ("probe", ["-p", "alpha", 0.9], "no finished pre-training in"),
])
def test_refused(pretrained, mini, tmp_path, name, arguments, says):
    base, _ = pretrained
    done = run_papermill(name, tmp_path / "out.ipynb", *arguments, "-r", "dataset", "mini", *places(base, mini))
    assert done.returncode != 0 and says in done.stderr


def test_the_same_command_again_makes_the_same_run(pretrained, mini, tmp_path):
    base, folder = pretrained
    again = shutil.copytree(base / "runs", tmp_path / "runs") / folder.relative_to(base / "runs")
    done = run_papermill("pretrain", tmp_path / "out.ipynb", "-p", "alpha", 0.4, "-p", "temperature", 0.1, "-p", "seed", 5, "-r", "dataset", "mini", *TINY,
                     "-r", "data_dir", mini, "-r", "features_dir", base / "features", "-r", "runs_dir", tmp_path / "runs")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    histories = [pd.read_csv(run / "history.csv").drop(columns="seconds") for run in (again, folder)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)


def pretrain(folder, log, settings):
    """Twelve epochs on thirty clips of noise, with a checkpoint after each, in a process of its own."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    generator = torch.Generator().manual_seed(0)
    n_frames = torch.randint(40, 90, (30,), generator=generator)
    frames = torch.randn(int(n_frames.sum()), 32, generator=generator)
    data = ClipFrames(frames, n_frames.cumsum(0) - n_frames, n_frames, torch.arange(30) % 3, torch.arange(30))
    config = PretrainConfig(width=4, epochs=12, batch_size=8, patch_frames=33, patch_hop=16, n_neighbours=5, evaluate_every=3, **settings)
    split = ClipSplit(data, data, data, list("abc"), FeatureConfig(n_mels=32))
    save_run(folder, fit(split, config, checkpoint=folder / "checkpoint.pt", checkpoint_every_s=0, device="cpu", report_every_s=0))


@pytest.mark.parametrize("settings", [{}, {"network": "vgg", "keep": "last", "precision": "bfloat16"}])
def test_killed_and_resumed_is_as_not_killed(tmp_path, settings):
    """SIGKILL after a few epochs, twice; the weights, the head and the history are those of a run that was left alone."""
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"

    def start(folder):
        process = FORKS.Process(target=pretrain, args=(folder, log, settings))
        process.start()
        return process

    def end(process):
        process.join(300)
        return process.exitcode

    assert end(start(whole)) == 0
    for line_seen in ("4/12", "9/12"):
        log.write_text("")
        process = start(killed)
        while line_seen not in log.read_text():
            assert process.is_alive()
            time.sleep(0.01)
        process.kill()
        assert end(process) == -signal.SIGKILL and not (killed / "metrics.json").exists()
    assert end(start(killed)) == 0 and "1/12" not in log.read_text().split()
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    columns = ["epoch", "learning_rate", "train_loss", "train_first", "train_angular", "validation_accuracy"]
    pd.testing.assert_frame_equal(pd.read_csv(killed / "history.csv")[columns], pd.read_csv(whole / "history.csv")[columns], check_exact=True)


needs_weights = pytest.mark.skipif(not (SHARED / "weights").is_dir(), reason="the published weights are not beside the repository")


@needs_weights
@pytest.mark.parametrize("file", PUBLISHED_WEIGHTS)
@pytest.mark.parametrize("kind", ["", "_scaled", "_real"])
def test_published_weights_give_the_released_codes_outputs(file, kind):
    golden = np.load(REFERENCE / f"golden_{PUBLISHED_WEIGHTS[file]}.npz")
    encoder, patches = load_published_encoder(SHARED / "weights" / file), torch.tensor(golden[f"input{kind}"])
    with torch.inference_mode():
        single, double = encoder(patches), encoder.double()(patches.double())
    for name in ("logits", "embedding"):
        expected = golden[f"{name}{kind}_f64"]
        np.testing.assert_allclose(getattr(single, name), expected, atol=1e-5)
        np.testing.assert_allclose(getattr(double, name), expected, atol=1e-12)


@pytest.mark.skipif(not (SHARED / "embeddings").is_dir(), reason="the published embeddings are not beside the repository")
def test_published_z_are_those_of_an_untrained_head():
    from acl_paper.embedding_quality import load_published_embeddings
    head = untrained_head()
    folders = sorted((SHARED / "embeddings").glob("t*"))
    assert len(folders) == 6
    for folder in folders:
        published = load_published_embeddings(folder, checksums=REFERENCE / "embeddings.sha256")
        with torch.inference_mode():
            z = head(torch.tensor(published.h).flatten(0, 1)).view(published.z.shape)
        assert np.abs(z.numpy() - published.z).max() < 2e-7, folder.name


@pytest.fixture
def server(tmp_path):
    """A local HTTP server of a folder: its address and the folder."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}", folder
        running.shutdown()


@needs_weights
def test_download_of_the_published_weights(server, tmp_path):
    address, folder = server
    for file in PUBLISHED_WEIGHTS: shutil.copy(SHARED / "weights" / file, folder)
    paths = download_files(tmp_path / "weights", address, published_sums("weights"))
    assert sorted(path.name for path in paths) == sorted(PUBLISHED_WEIGHTS)
    for path in paths: load_published_encoder(path)


@pytest.mark.skipif(not REAL_MINI.is_dir(), reason="the real sounds are not beside the repository")
@pytest.mark.long
def test_on_real_sounds(tmp_path):
    """It runs on real sounds; 40 test clips say nothing of accuracy."""
    done = run_papermill("pretrain", tmp_path / "out.ipynb", "-p", "dataset", "real-mini", "-p", "seed", 1, *TINY, *places(tmp_path, REAL_MINI))
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "runs" / "real-mini" / "pretrain" / "resnet18" / "alpha=0.3" / "temperature=0.2" / "seed=1"
    assert (folder / "metrics.json").is_file() and not json.loads((folder / "config.json").read_text())["data"]["synthetic"]
