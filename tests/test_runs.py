"""Run folders: those of the first edition, networks of one's own, and trainings that are killed."""
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import soundfile
import torch
import works
from helpers import ROOT, environment, make_data_set, run, run_acl, run_papermill

from acl_paper.console import DatasetError
from acl_paper.drawing import plot_class_change, plot_confusion, plot_embedding_map, readable
from acl_paper.pretraining import PretrainConfig
from acl_paper.probing import ProbeConfig
from acl_paper.report import table_html, write_report
from acl_paper.results import MixedRunsError, collect_runs
from acl_paper.runs import load_predictions, load_run, save_run
from acl_paper.training import TrainConfig, alone
from acl_paper.workflow import differences

FIRST_EDITION = Path(__file__).parent / "first_edition"  # one run of each kind, made by version 0.1.0


def test_a_training_of_the_first_edition():
    run_of_then = load_run(FIRST_EDITION / "training")
    assert run_of_then.settings == TrainConfig(alpha=0.5, subset="noisy_small", epochs=2)
    stored = safetensors.torch.load_file(FIRST_EDITION / "training" / "model.safetensors")
    assert all(torch.equal(value, stored[f"model.{name}"]) for name, value in run_of_then.network.state_dict().items())
    assert run_of_then.network(torch.zeros(2, 1, 100, 96)).logits.shape == (2, 20)


def as_json(name, change):
    def changed(folder):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))
    return changed


def as_text(name, old, new):
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new, 1))


def as_weights(change):
    def changed(folder):
        tensors = safetensors.torch.load_file(folder / "model.safetensors")
        change(tensors)
        safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return changed


CHANGES = {
    "a name twice": ("config.json is damaged", as_text("config.json", "{", '{"training": {}, ')),
    "no settings of features": ("config.json is damaged .its features lack fmax_hz, fmin_hz", as_json("config.json", lambda c: c.update(features={}))),
    "a network's settings": ("config.json is damaged .*unexpected keyword argument 'wide'", as_json("config.json", lambda c: c["training"].update(network_settings={"wide": 5}))),
    "a patch of weeks": ("config.json is damaged .patch_frames must be a whole number up to 10,000", as_json("config.json", lambda c: c["training"].update(patch_frames=10**9))),
    "a best epoch that is none": ("metrics.json is damaged .its best_epoch is no whole number: 'x'", as_json("metrics.json", lambda m: m.update(best_epoch="x"))),
    "no history": ("history.csv is damaged .it has no column epoch", lambda folder: (folder / "history.csv").write_text("{}")),
    "float64": ("weights in .* are not those of its network: of another type", as_weights(lambda w: w.update({n: t.double() for n, t in w.items() if n.startswith("model.")}))),
    "a scale of 0": ("mean and scale of the scaler are not those of 96 bands", as_weights(lambda w: w["scaler.scale"].zero_())),
    "five scales": ("mean and scale of the scaler are not those of 96 bands", as_weights(lambda w: w.update({"scaler.scale": w["scaler.scale"][:5].clone()}))),
}


@pytest.mark.parametrize(("told", "change"), CHANGES.values(), ids=CHANGES)
def test_a_run_without_checksums_that_holds_what_none_did_is_refused(tmp_path, told, change):
    folder = shutil.copytree(FIRST_EDITION / "training", tmp_path / "run")
    change(folder)
    with pytest.raises(DatasetError, match=told) as caught:
        load_run(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("table", ["", "x\n1\n", "fname,truth,prediction,Rain\n1.wav,Rain,Rain,much\n"])
def test_predictions_that_are_none_are_refused(tmp_path, table):
    (tmp_path / "predictions.csv").write_text(table)
    with pytest.raises(DatasetError, match="predictions.csv is damaged"):
        load_predictions(tmp_path)


def test_a_pretraining_of_the_first_edition():
    run_of_then = load_run(FIRST_EDITION / "pretraining")
    assert run_of_then.settings == PretrainConfig(alpha=0.3, width=8, epochs=2, batch_size=64, n_neighbours=20, evaluate_every=5)
    assert {"train_loss", "train_first", "train_angular", "validation_accuracy"} <= set(run_of_then.history)
    assert [output.shape for output in run_of_then.network(torch.zeros(2, 1, 101, 96))] == [(2, 512), (2, 64)]
    stored = safetensors.torch.load_file(FIRST_EDITION / "pretraining" / "encoder.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in run_of_then.network.state_dict().items())
    assert run_of_then.scaler == tuple(stored["scale"].tolist())


def test_a_pretraining_made_again_in_a_folder_of_the_first_edition_is_the_new_one(tmp_path):
    folder = shutil.copytree(FIRST_EDITION / "pretraining", tmp_path / "run")
    again = load_run(folder)
    with torch.no_grad():
        again.network.head.layers[0].weight.zero_()
    again.best_epoch = 1
    save_run(folder, again)
    assert not load_run(folder).network.head.layers[0].weight.any()


def test_a_probe_of_the_first_edition():
    run_of_then = load_run(FIRST_EDITION / "probe")
    assert run_of_then.settings == ProbeConfig(epochs=3)
    assert run_of_then.pretrained["width"] == 8 and run_of_then.best_epoch in (1, 2, 3)
    patches = torch.randn(2, 1, 101, 96)
    logits = run_of_then.network(patches).logits
    assert logits.shape == (2, 20)
    assert torch.equal(logits, run_of_then.network.encoder(patches).logits)  # where its classifier stood then


def test_runs_of_the_first_edition_count_as_finished(tmp_path):
    folder = shutil.copytree(FIRST_EDITION / "training", tmp_path / "mini" / "noisy_small" / "alpha=0.5" / "seed=0")
    assert collect_runs(tmp_path, "mini").folder.tolist() == [folder]
    assert differences(folder, {"settings": {"alpha": 0.5, "subset": "noisy_small", "seed": 0, "epochs": 2}}) == []
    assert differences(folder, {"settings": {"epochs": 40}}) == ["epochs was 2, is 40"]
    assert differences(FIRST_EDITION / "pretraining", {"settings": {"alpha": 0.3, "temperature": 0.2, "epochs": 2}}) == []
    assert differences(FIRST_EDITION / "probe", {"settings": {"task": "linear", "epochs": 3}, "pretrained": {"alpha": 0.3, "epochs": 2}}) == []


@pytest.mark.parametrize("kind", ["training", "probe"])
@pytest.mark.parametrize(("name", "content"), [("config.json", b""), ("config.json", b"[" * 100_000), ("metrics.json", b"[" * 100_000), ("history.csv", b""),
                                               ("model.safetensors", b"half"), ("model.safetensors", bytes(1000))])
def test_a_damaged_run_is_named_in_one_line(tmp_path, kind, name, content):
    folder = shutil.copytree(FIRST_EDITION / kind, tmp_path / "run")
    (folder / name).write_bytes(content)
    soundfile.write(tmp_path / "a.wav", np.zeros(100_000), 44_100)
    done = run_acl("acl_predict", tmp_path / "a.wav", "--run", folder)
    assert done.returncode != 0 and str(folder / name) in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert differences(folder, {"settings": {}}) == [] or name in ("config.json", "metrics.json")


def test_a_run_that_a_power_cut_left_empty_does_not_keep_the_table_from_the_others(tmp_path):
    """It counts as unfinished; settings that cannot be read are named, since they may be of any run."""
    whole, cut = (shutil.copytree(FIRST_EDITION / "training", tmp_path / "mini" / "noisy_small" / "alpha=0.5" / f"seed={seed}") for seed in (0, 1))
    (cut / "metrics.json").write_bytes(b"")
    assert collect_runs(tmp_path, "mini").folder.tolist() == [whole]
    assert differences(cut, {"settings": {}})[0].startswith("it is damaged")
    shutil.copy(whole / "metrics.json", cut)
    (cut / "config.json").write_bytes(b"{")
    with pytest.raises(DatasetError, match="seed=1/config.json is damaged"):
        collect_runs(tmp_path, "mini")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of today, with a test."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    works.train(folder)
    return folder


@pytest.fixture
def made(trained, tmp_path):
    """A copy of it, to be damaged."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(made, value):
    run = load_run(made)
    with torch.no_grad():
        next(run.network.parameters()).view(-1)[-1] = value
    save_run(made, run)
    with pytest.raises(DatasetError, match="model.safetensors holds values that are not finite"):
        load_run(made)


def changed_config(folder, change):
    """Another config.json, as of a run without checksums."""
    for name, drop in (("metrics.json", "sha256"), ("config.json", "checksums")):
        content = json.loads((folder / name).read_text())
        content.pop(drop, None)
        if name == "config.json":
            change(content)
        (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("classes", ["abc", ["a", "a", "b"], [1, 2, 3], [], None, {"a": 0}])
def test_class_names_that_are_none_are_refused(made, classes):
    changed_config(made, lambda config: config.update(classes=classes))
    with pytest.raises(DatasetError, match="config.json is damaged"):
        load_run(made)


@pytest.mark.parametrize("network", ["os:getcwd", "json:dumps", "builtins:print", "math:pi", "torch.nn:Identity", "no.such:Net"])
def test_an_import_path_of_no_network_is_named(made, network):
    changed_config(made, lambda config: config["settings"].update(network=network))
    with pytest.raises(DatasetError, match=str(made)) as caught:
        load_run(made)
    assert "\n" not in str(caught.value)


def test_runs_of_other_labels_are_not_mixed(tmp_path):
    """The labels were corrected between two seeds. Runs of the first edition say nothing of them."""
    for seed, table in enumerate(["before", "after", None]):
        folder = shutil.copytree(FIRST_EDITION / "training", tmp_path / "mini" / "noisy_small" / "alpha=0.5" / f"seed={seed}")
        config = json.loads((folder / "config.json").read_text())
        config["training"]["seed"] = seed
        config["dataset"] = config.get("dataset", {}) | ({"table": table} if table else {})
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(MixedRunsError, match='data.table: "after" in 1 run.*"before" in 1 run'):
        collect_runs(tmp_path, "mini")
    shutil.rmtree(tmp_path / "mini" / "noisy_small" / "alpha=0.5" / "seed=1")
    assert len(collect_runs(tmp_path, "mini")) == 2


@pytest.mark.parametrize(("name", "content"), [
    ("sources.json", ""), ("sources.json", "{"), ("sources.json", "[]"), ("sources.json", "7"), ("sources.json", '{"dataset": "x"}'),
    ("results.csv", ""), ("results.csv", "a,b\n1\n2,3,4\n"), ("results.csv", "a,b\n1,2\n"), ("verdicts.csv", ""),
])
def test_damaged_results_are_named_by_the_report(tmp_path, name, content):
    sources = {"dataset": "x", "synthetic": False, "runs": ["a"], "configuration": {}, "versions": ["{}"], "made_with": {}}
    (tmp_path / "sources.json").write_text(json.dumps(sources))
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=f"{name} .*; make it again: make results") as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_subset_called_NA_is_in_the_report(tmp_path):
    (tmp_path / "results.csv").write_text("subset,n_seeds,mean\nNA,1,0.5\nclean,1,\n")
    table = table_html(tmp_path / "results.csv")
    assert "<td>NA</td>" in table and "<td></td>" in table


ODD_CLASSES = ["$\\frac", "$x$", "a_b", "a b", "_hidden", "%s {0}", "ü\n🐦"]


def test_figures_show_classes_of_any_name():
    """Nothing is a formula, and no two classes become one."""
    assert len({*readable(ODD_CLASSES)}) == len(ODD_CLASSES)
    predictions = pd.DataFrame({"truth": ODD_CLASSES, "prediction": ODD_CLASSES[::-1]})
    change = pd.DataFrame({"class": ODD_CLASSES, "change": np.linspace(-1, 1, len(ODD_CLASSES))})
    points = pd.DataFrame({"x": np.linspace(-1, 1, 7), "y": 0.0, "truth": ODD_CLASSES})
    figure, axes = plt.subplots(1, 3)
    plot_confusion(predictions, axes[0])
    plot_class_change(change, axes[1])
    plot_embedding_map(points, axes[2])
    figure.canvas.draw()
    assert len(axes[1].get_yticklabels()) == len(ODD_CLASSES)
    plt.close(figure)


PROGRAM = textwrap.dedent("""
    import sys
    import numpy as np
    import torch
    from acl_paper.patches import Patches, Scaler, Split
    from acl_paper.runs import save_run
    from acl_paper.training import TrainConfig, fit
    generator = torch.Generator().manual_seed(0)
    def patches(n):
        return Patches(torch.randn(100 * n, 96, generator=generator), 100 * torch.arange(n), torch.arange(n) % 3, torch.arange(n))
    split = Split(patches(96), patches(12), patches(6), Scaler(np.zeros(96), np.ones(96)), list("abc"))
    def smoothed(embedding, labels, logits):
        return torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    loss = smoothed if sys.argv[2] == "function" else None
    run = fit(split, TrainConfig(epochs=4, batch_size=8), loss=loss, device="cpu", checkpoint=sys.argv[1] + "/checkpoint.pt", checkpoint_every_s=0, report_every_s=0)
    save_run(sys.argv[1], run)
""")


def test_a_second_process_says_what_it_waits_for(tmp_path):
    with alone(tmp_path / "run" / "checkpoint.pt"):
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, tmp_path / "run", "acl"], env=environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True)
        line = process.stdout.readline()
    assert line.startswith(f"waiting: the run in {tmp_path / 'run'} is made by another process, which holds ")
    assert "4/4 epochs" in process.communicate(timeout=60)[0]


@pytest.mark.long
@pytest.mark.parametrize("loss", ["acl", "function"])
def test_killed_in_the_middle_of_an_epoch_and_resumed_is_as_not_killed(tmp_path, loss):
    """SIGKILL between two steps, twice; the weights and the history are those of a training that was left alone."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run([sys.executable, "-c", PROGRAM, whole, loss]).returncode == 0
    for line_seen in ("1/4", "3/4"):
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, killed, loss], env=environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert next((line for line in process.stdout if line_seen in line), None)
        stopped_at = wait_for_steps(killed / "checkpoint.pt", process)
        assert stopped_at["state"]["n_done"] > 0 and not (killed / "model.safetensors").exists()
    resumed = run([sys.executable, "-c", PROGRAM, killed, loss])
    assert resumed.returncode == 0 and "1/4" not in resumed.stdout.split()
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    histories = [pd.read_csv(folder / "history.csv").drop(columns="seconds") for folder in (whole, killed)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)


def wait_for_steps(checkpoint, process):
    """Kill the process once a checkpoint lies between two steps of an epoch; that checkpoint."""
    for _ in range(200):
        time.sleep(0.02)
        process.send_signal(signal.SIGSTOP)
        stored = torch.load(checkpoint, weights_only=True)
        if stored["state"]["n_done"] > 0:
            break
        process.send_signal(signal.SIGCONT)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return stored


MY_NETS = textwrap.dedent("""
    import torch

    class Tiny(torch.nn.Module):
        def __init__(self, n_classes, patch_shape):
            super().__init__()
            self.classifier = torch.nn.Linear(patch_shape[1], n_classes)

        def forward(self, patches):
            embedding = patches.mean(dim=(1, 2))
            return self.classifier(embedding), embedding

    def focal(logits, labels, gamma=2.0):
        log_p = logits.log_softmax(1).gather(1, labels[:, None])[:, 0]
        return (-(1 - log_p.exp())**gamma * log_p).mean()
""")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data_set(tmp_path_factory.mktemp("data") / "set", 24, 2.2)


def test_a_network_and_a_loss_of_ones_own_through_papermill(data, tmp_path):
    (tmp_path / "my_nets.py").write_text(MY_NETS)
    done = run_papermill("train", tmp_path / "out.ipynb", "-p", "network", "my_nets:Tiny", "-p", "first_loss", "my_nets:focal", "-p", "subset", "clean", "-p", "epochs", 2,
                         "-r", "dataset", "own", "-r", "data_dir", data, "-r", "runs_dir", tmp_path / "runs", "-r", "features_dir", tmp_path / "features", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "runs" / "own" / "clean" / "network=my_nets.Tiny" / "first_loss=my_nets.focal" / "alpha=0.5" / "seed=0"
    assert json.loads((folder / "config.json").read_text())["settings"]["network"] == "my_nets:Tiny"
    with pytest.raises(ValueError, match="network my_nets:Tiny, which cannot be imported here"):
        load_run(folder)
    loaded = run([sys.executable, "-c", f"from acl_paper.runs import load_run; print(type(load_run({str(folder)!r}).network).__name__)"], cwd=tmp_path)
    assert loaded.stdout.strip() == "Tiny", loaded.stderr
    predicted = run_acl("acl_predict", data / "FSDnoisy18k.audio_test" / "1.wav", "--run", folder, cwd=tmp_path)
    assert predicted.returncode == 0 and "1.wav" in predicted.stdout, predicted.stderr


def test_a_wrong_path_is_refused_before_any_work(data, tmp_path):
    done = run_papermill("train", tmp_path / "out.ipynb", "-p", "network", "papercnn", "-r", "dataset", "own", "-r", "data_dir", data, "-r", "runs_dir", tmp_path / "runs", cwd=tmp_path)
    assert done.returncode != 0 and "there is no network 'papercnn'; choose one of paper_cnn" in done.stderr
    assert not (tmp_path / "runs").exists()
