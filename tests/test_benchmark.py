"""The benchmark's reference way computes what the package computes; the rehearsal is what it says; training leaves the process as it was and repeats itself."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from acl_paper.benchmark import (ReferenceCNN, ReferencePatches, benchmark_table, make_rehearsal, plan_rehearsal, published_classes, reference_angular_loss,
                                 reference_epoch, reference_evaluation, reference_extraction, reference_preparation, run_benchmark, write_noise)
from acl_paper.console import DatasetError
from acl_paper.data import SUBSETS, load_clips, locate_dataset
from acl_paper.evaluation import evaluate
from acl_paper.features import extract_features
from acl_paper.losses import AngularContrastiveLoss
from acl_paper.networks import PaperCNN
from acl_paper.training import TrainConfig, fit, make_split

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


def test_rehearsal_can_be_learned(rehearsal):
    root, store, clips = rehearsal
    config = TrainConfig(subset="all", epochs=5, batch_size=32)
    assert fit(make_split(store, clips, config), config, device="cpu", report_every_s=None).history.validation_accuracy.max() > 0.15, "chance is 0.05"


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


def test_reference_evaluation_predicts_the_same(rehearsal):
    root, store, clips = rehearsal
    config = TrainConfig(subset="all", epochs=2, batch_size=32)
    split = make_split(store, clips, config)
    trained = fit(split, config, device="cpu", report_every_s=None)
    literal = ReferenceCNN(20).eval()
    literal.load_state_dict(trained.model.state_dict())
    test = clips[clips.split == "test"]
    predictions, _ = evaluate(trained, split.test, clips.fname, device="cpu")
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


def test_benchmark_in_miniature():
    result = run_benchmark(scale=0.002, repeats=1, n_steps=1, n_clips=2, sections=("training",))
    assert list(result["sections"]["training"]["ways"]) == ["reference", "float32", "bfloat16"]
    assert json.loads(json.dumps(result)) == result
    table = benchmark_table(result)
    assert isinstance(table, pd.DataFrame) and len(table) == 3
    assert {"processor", "processors"} <= set(result["machine"]) and "torch" in result["versions"]


@pytest.mark.parametrize("options, told", [(["--size", "huge"], "--size must be one of mini, fsdnoisy18k"), (["--device", "cuda"], "torch sees no GPU here")])
def test_command_says_what_is_wrong(options, told, tmp_path):
    if "cuda" in options and torch.cuda.is_available(): pytest.skip("this machine has a GPU")
    script = tmp_path / "acl_bench.py"  # as an installed console script calls it
    script.write_text("from acl_paper.benchmark import acl_bench\nacl_bench()\n")
    done = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and told in done.stderr and "Traceback" not in done.stderr


def weights_after(split, **settings):
    trained = fit(split, TrainConfig(subset="clean", epochs=2, batch_size=32, **settings), device="cpu", report_every_s=None)
    return torch.cat([tensor.flatten().double() for tensor in trained.model.state_dict().values()])


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
torch.set_num_threads({torch.get_num_threads()})
from acl_paper.data import load_clips
from acl_paper.features import open_feature_store
from acl_paper.training import TrainConfig, fit, make_split
clips, store = load_clips({str(root)!r}), open_feature_store({str(store.path)!r})
split = make_split(store, clips, TrainConfig(subset="clean"))
trained = fit(split, TrainConfig(subset="clean", epochs=2, batch_size=32), device="cpu", report_every_s=None)
print(torch.cat([tensor.flatten().double() for tensor in trained.model.state_dict().values()]).sum().item())
"""
    assert float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) == here


def test_training_puts_torchs_settings_back(rehearsal):
    root, store, clips = rehearsal
    def settings(): return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark, torch.get_num_threads()
    before = settings()
    weights_after(make_split(store, clips, TrainConfig(subset="clean")))
    assert settings() == before


def test_half_precision_frames_change_the_loss_little(rehearsal):
    root, store, clips = rehearsal
    losses = []
    for kind in ("float32", "float16"):
        config = TrainConfig(subset="all", epochs=1, batch_size=32, frames=kind)
        split = make_split(store, clips, config)
        assert split.train.frames.dtype == getattr(torch, kind)
        losses.append(fit(split, config, device="cpu", report_every_s=None).history.train_loss[0])
    assert abs(losses[0] - losses[1]) < 0.01 * losses[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: recorded steps are compared with ordinary ones on a GPU only")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "tf32"])
def test_recorded_steps_do_what_ordinary_steps_do(rehearsal, precision):
    from acl_paper.training import TrainingStep
    root, store, clips = rehearsal
    split, told = make_split(store, clips, TrainConfig(subset="all")).to("cuda"), []
    for recorded in (False, True):
        torch.manual_seed(0)
        model = PaperCNN(20, dropout=0.0).to("cuda", memory_format=torch.channels_last).train()
        optimiser = torch.optim.Adam(model.parameters(), lr=torch.tensor(1e-3, device="cuda"), fused=True, capturable=True)
        step = TrainingStep(model, split.train, AngularContrastiveLoss(0.5), optimiser, precision=precision)
        if not recorded: step.recording = None
        for number in range(8):
            step(torch.arange(32, device="cuda") + number)
            if number == 5: optimiser.param_groups[0]["lr"].fill_(1e-4)  # as the schedule does
        told.append(step.losses.tolist())
    assert np.allclose(*told, rtol=2e-2 if precision == "bfloat16" else 2e-3)
