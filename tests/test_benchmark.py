"""The benchmark's reference way computes what the package computes; the rehearsal is what it says; training leaves the process as it was and repeats itself."""

import ast
import json
import re
import shlex
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import ROOT, copy_of_repository, run

from acl_paper.console import DatasetError
from acl_paper.data import SUBSETS, load_clips, locate_dataset
from acl_paper.evaluation import evaluate
from acl_paper.features import extract_features
from acl_paper.losses import AngularContrastiveLoss
from acl_paper.networks import PaperCNN
from acl_paper.training import TrainConfig, fit
from acl_paper.patches import make_split

sys.path.insert(0, str(ROOT))  # benchmarks/ is not installed
from benchmarks.exactness import recorded_and_ordinary  # noqa: E402
from benchmarks.gpu import Part, run_part  # noqa: E402
from benchmarks.reference import (  # noqa: E402
    ReferenceCNN,
    ReferencePatches,
    reference_angular_loss,
    reference_epoch,
    reference_evaluation,
    reference_extraction,
    reference_preparation,
)
from benchmarks.rehearsal import make_rehearsal, plan_rehearsal, published_classes  # noqa: E402
from benchmarks.run import run_benchmark  # noqa: E402
from benchmarks.studies import startup_study  # noqa: E402
from benchmarks.supervised import write_noise  # noqa: E402
from benchmarks.tables import benchmark_table  # noqa: E402
from benchmarks.timing import take_turns  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:The subset")  # so small a rehearsal cannot always be stratified

@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    "A small rehearsal: folder, store, clips."
    folder = tmp_path_factory.mktemp("rehearsal")
    store = make_rehearsal(folder / "data", folder / "features", scale=0.003)
    return folder / "data", store, load_clips(folder / "data")


def test_rehearsal_has_the_published_counts_and_minutes():
    plan, published = plan_rehearsal(), published_classes()
    counts = {"clean": plan[plan.manually_verified == 1], "noisy": plan[(plan.split == "train") & (plan.manually_verified == 0)], "test": plan[plan.split == "test"]}
    for part, rows in counts.items():
        assert rows.groupby("label").size().to_dict() == published[f"{part}_clips"].to_dict()
        assert np.allclose(rows.groupby("label").duration_s.sum() / 60, published.loc[sorted(published.index), f"{part}_min"], atol=1e-3)
    assert plan[plan.noisy_small == 1].groupby("label").size().to_dict() == published.noisy_small_clips.to_dict()
    assert plan.duration_s.between(0.3, 30).all() and plan.fname.is_unique


def test_rehearsal_is_named_and_marked(rehearsal):
    root, store, clips = rehearsal
    location = locate_dataset("auto", root)
    assert (location.name, location.synthetic) == ("rehearsal", True)
    assert [len(make_split(store, clips, TrainConfig(subset=subset)).classes) for subset in SUBSETS] == [20] * 4
    with pytest.raises(DatasetError, match="rehearsal"): make_rehearsal(root.parent / "elsewhere", store.path.parent.parent, scale=0.01)


@pytest.fixture(scope="module")
def trained(rehearsal):
    "A split of it and the run that was trained on that."
    root, store, clips = rehearsal
    config = TrainConfig(subset="all", epochs=5, batch_size=32)
    split = make_split(store, clips, config)
    return split, fit(split, config, device="cpu", report_every_s=None)


def test_rehearsal_can_be_learned(trained):
    assert trained[1].history.validation_accuracy.max() > 0.15, "chance is 0.05"


def test_reference_way_computes_the_same(rehearsal):
    """One step in double precision, with the gradient of every parameter; then predictions, preparation and extraction."""
    torch.manual_seed(0)
    patches, labels = torch.randn(8, 1, 100, 96).double(), torch.arange(8) % 3
    theirs = ReferenceCNN(20, dropout=0.0).double()
    ours = PaperCNN(20, dropout=0.0).double()
    ours.load_state_dict(theirs.state_dict())
    logits, features = theirs(patches)
    (0.5 * torch.nn.functional.cross_entropy(logits, labels) + 0.5 * reference_angular_loss(features, labels)).backward()
    logits, features = ours(patches)
    AngularContrastiveLoss(0.5)(features, labels, logits).backward()
    for (name, a), b in zip(theirs.named_parameters(), ours.parameters()):
        assert torch.allclose(a.grad, b.grad, atol=1e-9, rtol=1e-6), name
    for a, b in zip(theirs.buffers(), ours.buffers()): assert torch.allclose(a.double(), b.double(), atol=1e-12)


def test_reference_evaluation_predicts_the_same(rehearsal, trained):
    root, store, clips = rehearsal
    split, run_ = trained
    literal = ReferenceCNN(20).eval()
    literal.load_state_dict(run_.network.state_dict())
    test = clips[clips.split == "test"]
    predictions, _ = evaluate(run_, split.test, clips.fname, device="cpu")
    labels = reference_evaluation(literal, store, test, split.scaler)
    assert [split.classes[label] for label in labels] == predictions.prediction.tolist()


def test_reference_preparation_and_loading_give_the_same_patches(rehearsal):
    root, store, clips = rehearsal
    split = make_split(store, clips, TrainConfig(subset="clean"))
    # first patch of each clip, where it stands in the store
    rows = np.unique(split.train.clips.numpy(), return_index=True)[1]
    starts = store.clips.offset[split.train.clips[rows].tolist()].to_numpy()
    data = ReferencePatches(store.path, starts, split.train.labels[rows].numpy(), split.scaler)
    patches, labels = split.train[torch.from_numpy(rows)]
    for k in range(len(data)):
        assert torch.equal(data[k][0], patches[k]) and data[k][1] == labels[k]
    stacked = reference_preparation(store, starts).reshape(-1, 96)
    assert np.abs(stacked.mean(0)).max() < 1e-6 and np.abs(stacked.std(0) - 1).max() < 1e-6


def test_reference_extraction_gives_the_same_frames(tmp_path):
    import h5py
    paths = write_noise(tmp_path / "noise", 3, duration_s=1.2)
    reference_extraction(paths, tmp_path / "reference.h5")
    store = extract_features(tmp_path / "noise", tmp_path / "ours.h5", report_every_s=None)
    with h5py.File(tmp_path / "reference.h5") as file:
        for k, path in enumerate(paths): assert np.abs(file[path.name][()] - store[k]).max() < 5e-7


def test_reference_epoch_learns(rehearsal):
    root, store, clips = rehearsal
    split = make_split(store, clips, TrainConfig(subset="clean"))
    data = ReferencePatches(store.path, np.resize(store.clips.offset[split.train.clips.tolist()].to_numpy(), 128), np.resize(split.train.labels.numpy(), 128), split.scaler)
    torch.manual_seed(0)
    model = ReferenceCNN(20)
    losses = [np.mean(reference_epoch(model, data, torch.optim.Adam(model.parameters(), lr=1e-3))) for _ in range(2)]
    assert len(losses) == 2 and losses[1] < losses[0]


@pytest.mark.long
def test_benchmark_in_miniature():
    result = run_benchmark(scale=0.002, repeats=1, n_steps=1, n_clips=2, sections=("training",))
    assert list(result["sections"]["training"]["ways"]) == ["reference", "float32", "bfloat16"]
    assert json.loads(json.dumps(result)) == result
    table = benchmark_table(result)
    assert isinstance(table, pd.DataFrame) and len(table) == 3
    assert {"processor", "processors"} <= set(result["machine"]) and "torch" in result["versions"]


def python_m(module, *options, timeout=300):
    return run([sys.executable, "-m", f"benchmarks.{module}", *map(str, options)], timeout=timeout)


@pytest.mark.parametrize("module, options, told", [
    pytest.param("run", ["--size", "huge"], "--size must be one of tiny, mini, fsdnoisy18k", marks=pytest.mark.long),
    ("run", ["--sections", "training lunch"], "got 'lunch'"),
    ("run", ["--device", "cuda"], "torch sees no GPU here"),
    pytest.param("pretraining", ["--ways", "ours"], "reference", marks=pytest.mark.long),
    pytest.param("studies", ["everything"], "there are scale, precision, startup, cells", marks=pytest.mark.long),
])
def test_command_says_what_is_wrong(module, options, told):
    if "cuda" in options and torch.cuda.is_available(): pytest.skip("this machine has a GPU")
    done = python_m(module, *options)
    assert done.returncode != 0 and told in done.stderr and "Traceback" not in done.stderr


def test_rehearsal_command(tmp_path):
    made = python_m("rehearsal", "--dest", tmp_path / "data", "--features_dir", tmp_path / "features", "--scale", 0.002)
    assert made.returncode == 0 and "all made up" in made.stdout, made.stderr
    assert (tmp_path / "data" / "dataset.json").is_file()
    refused = python_m("rehearsal", "--dest", tmp_path / "data", "--features_dir", tmp_path / "features", "--scale", 0.003)
    assert refused.returncode != 0 and "holds something else already" in refused.stderr and "Traceback" not in refused.stderr


def test_a_way_that_fails_is_reported():
    with pytest.raises(RuntimeError, match="one of wrong failed"): take_turns({"wrong": (int, ("no number",))}, repeats=1)


def test_no_private_name_crosses_modules():
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        assert [(path.name, alias.name) for node in imports for alias in node.names if alias.name.startswith("_")] == []


def test_benchmarks_are_not_installed():
    """Neither as a module of the package, nor as a console command, nor as a package beside it."""
    from setuptools import find_packages
    assert "benchmark" not in (ROOT / "settings.ini").read_text() and not (ROOT / "acl_paper" / "benchmark.py").exists()
    assert find_packages(ROOT, include=["acl_paper", "acl_paper.*"]) == ["acl_paper"] and 'include=["acl_paper", "acl_paper.*"]' in (ROOT / "setup.py").read_text()


def weights_after(split, **settings):
    trained = fit(split, TrainConfig(subset="clean", epochs=2, batch_size=32, **settings), device="cpu", report_every_s=None)
    return torch.cat([tensor.flatten().double() for tensor in trained.network.state_dict().values()])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_same_seed_same_weights_bit_for_bit_on_a_cpu(rehearsal, precision):
    root, store, clips = rehearsal
    split = make_split(store, clips, TrainConfig(subset="clean"))
    first, second, other = (weights_after(split, precision=precision, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_same_seed_same_weights_in_another_process(rehearsal):
    root, store, clips = rehearsal
    here = weights_after(make_split(store, clips, TrainConfig(subset="clean"))).sum().item()
    code = f"""
import torch
from acl_paper.data import load_clips
from acl_paper.features import open_feature_store
from acl_paper.patches import make_split
from acl_paper.training import TrainConfig, fit
torch.set_num_threads({torch.get_num_threads()})
clips, store = load_clips({str(root)!r}), open_feature_store({str(store.path)!r})
split = make_split(store, clips, TrainConfig(subset="clean"))
trained = fit(split, TrainConfig(subset="clean", epochs=2, batch_size=32), device="cpu", report_every_s=None)
print(torch.cat([tensor.flatten().double() for tensor in trained.network.state_dict().values()]).sum().item())
"""
    assert float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) == here


def test_training_puts_torchs_settings_back(rehearsal):
    root, store, clips = rehearsal
    def settings(): return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark, torch.get_num_threads()
    before = settings()
    weights_after(make_split(store, clips, TrainConfig(subset="clean")))
    assert settings() == before


def test_half_precision_frames_change_the_loss_little(rehearsal, trained):
    """Of the first epoch."""
    root, store, clips = rehearsal
    config = TrainConfig(subset="all", epochs=1, batch_size=32, frames="float16")
    split = make_split(store, clips, config)
    assert (trained[0].train.frames.dtype, split.train.frames.dtype) == (torch.float32, torch.float16)
    whole, half = trained[1].history.train_loss[0], fit(split, config, device="cpu", report_every_s=None).history.train_loss[0]
    assert abs(whole - half) < 0.01 * whole and whole != half


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: recorded steps are compared with ordinary ones on a GPU only")
def test_recorded_steps_do_what_ordinary_steps_do(rehearsal):
    root, store, clips = rehearsal
    apart = recorded_and_ordinary(make_split(store, clips, TrainConfig(subset="all")).to("cuda"), n_steps=8, batch_size=32)
    assert all(told["difference"] < (2e-2 if precision == "bfloat16" else 2e-3) for precision, told in apart.items())


def test_gpu_command_without_a_gpu():
    done = run([sys.executable, "-m", "benchmarks.gpu"], environ={"CUDA_VISIBLE_DEVICES": ""})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("no GPU here: needed are an NVIDIA GPU")


@pytest.mark.long
def test_gpu_command_tried_on_a_cpu(tmp_path):
    """Every part of it, for real, at tiny sizes."""
    copy = copy_of_repository(tmp_path)
    made = run(["make", "-n", "gpu", "DEVICE=cpu", "QUICK=1", "OUT=numbers.json"], cwd=copy)
    words = re.search(r"python -m (benchmarks\.gpu .*)", made.stdout)[1]
    done = run([sys.executable, "-m", *shlex.split(words)], cwd=copy, environ={"PYTHONPATH": str(copy)})
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((copy / "numbers.json").read_text())
    assert told["quick"] and told["machine"]["processor"] and told["versions"]["torch"] and "commit" in told
    parts = {name: part["result"] for name, part in told["parts"].items()}
    assert parts["timing"]["sections"]["evaluation"]["ways"]["float32"]["wall_s"]["median"] > 0
    assert [precision["difference"] for precision in parts["exactness"]["recorded and ordinary"].values()] == [0, 0, 0]
    assert parts["exactness"]["two runs alike"]["weights"] == 0
    assert [(cell["subset"], cell["alpha"]) for cell in parts["table"]] == [("clean", 0.5)] and parts["table"][0]["training_s"] > 0
    assert len(parts["pretraining"]["history"]["seconds"]) == 1


def test_a_part_that_fails_or_takes_too_long_is_recorded():
    def told(code, limit_s=60): return run_part(Part([sys.executable, "-c", code], dict), time.monotonic() + limit_s, "cpu")
    assert told("pass")["result"] == {}
    assert told("raise SystemExit(3)")["error"] == "ended with status 3"
    slow = told("import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])", 0.6)
    assert slow["error"] == "not done after 1 s" and slow["seconds"] < 30


@pytest.mark.long
def test_starts_are_timed():
    """Each start ends as it should, the refused cell with the reason; a round before the first is not counted."""
    table = startup_study(repeats=1)
    assert table["round"].tolist() == [1] * 6 and table.start.is_unique and (table.cpu_s > 0).all()
