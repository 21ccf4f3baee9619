"""What a GPU asks of the code, tried without one: nothing in an epoch reads a value back, and a recorded step does what an unrecorded one does."""
from contextlib import contextmanager
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import works
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from acl_paper.augment import AugmentConfig, two_views
from acl_paper.evaluation import CudaRecording, autocast, evaluate, outputs_of, plain_float32, step_schedule
from acl_paper.inference import Classifier
from acl_paper.losses import RELEASED_CONSTANT_OF_VIEWS, AngularContrastiveLoss, InfoNCE
from acl_paper.networks import PaperCNN, make_network
from acl_paper.patches import ClipFrames, Patches, random_patches
from acl_paper.pretraining import PretrainConfig, first_networks, view_loss
from acl_paper.pretraining import fit as fit_encoder
from acl_paper.probing import ProbeConfig
from acl_paper.probing import fit as fit_probe
from acl_paper.robust_losses import FIRST_LOSSES, first_loss
from acl_paper.runs import save_run
from acl_paper.training import TrainConfig, TrainingStep, angle_percentiles, fit, loss_of, validation_losses

META = torch.device("meta")  # shapes without values: whoever asks for a value gets an error


def patches_on(device, n=24, patch_frames=100):
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(patch_frames * n, 96, generator=generator)
    return Patches(frames, patch_frames * torch.arange(n), torch.arange(n) % 5, torch.arange(n) // 2, patch_frames).to(device)


def clips_on(device, n=12):
    n_frames = torch.full((n,), 150)
    frames = torch.randn(150 * n, 96, generator=torch.Generator().manual_seed(0))
    return ClipFrames(frames, n_frames.cumsum(0) - n_frames, n_frames, torch.arange(n) % 3, torch.arange(n)).to(device)


def test_a_value_on_the_meta_device_cannot_be_read():
    """So the tests below can fail."""
    with pytest.raises(RuntimeError):
        torch.ones(3, device=META).sum().item()
    with pytest.raises(RuntimeError):
        torch.ones(3, device=META) + torch.ones(3)
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(3, device=META)[torch.ones(3, device=META) > 0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["cross_entropy", *[name for name in FIRST_LOSSES if name != "cross_entropy"]])
def test_a_training_step_reads_nothing_back(name, precision):
    network = PaperCNN(20).to(META)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=1e-3)
    step = TrainingStep(network, patches_on(META), loss_of(TrainConfig(first_loss=name)), optimiser, precision=precision)
    step(torch.arange(8, device=META))
    assert step.losses.device == META and step.losses.shape == (3,)


@pytest.mark.parametrize("reduction", ["released", "mean", "sum"])
@pytest.mark.parametrize("name", sorted(FIRST_LOSSES))
def test_losses_of_a_validation_read_nothing_back(name, reduction):
    logits, embedding, labels = torch.randn(24, 20, device=META), torch.randn(24, 48, device=META), torch.zeros(24, dtype=torch.long, device=META)
    loss = AngularContrastiveLoss(0.5, first_loss=first_loss(name), reduction=reduction)
    assert validation_losses(logits, embedding, labels, loss, batch_size=10).shape == (3,)
    assert angle_percentiles(embedding, labels).shape == (6,)


@pytest.mark.parametrize("network", ["paper_cnn", "resnet18", "vgg", "crnn"])
def test_outputs_of_all_patches_are_made_without_reading(network):
    patches = patches_on(META)
    made = make_network(network, 20, (100, 96)).to(META)
    if network == "paper_cnn":
        made.for_inference = lambda: made  # folding is done once, before the patches
    asked = []
    patches.__class__ = type("Watched", (Patches,), {"__getitem__": lambda self, rows: asked.append(rows.device) or Patches.__getitem__(self, rows)})
    logits, embedding = outputs_of(made, patches, batch_size=10)
    assert logits.shape == (24, 20) and embedding.shape[0] == 24
    assert asked == [META] * 3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("augment", [AugmentConfig(), AugmentConfig(n_masks=2, time_shift_frames=5, band_shift=3)], ids=["paper", "all"])
def test_a_pretraining_step_reads_nothing_back(precision, augment):
    config = PretrainConfig(width=4, augment=augment, precision=precision)
    networks = first_networks(config, 20, 96).to(META)
    rows = torch.arange(6, device=META)
    views = two_views(clips_on(META), rows, augment)
    outputs = [networks(view.unsqueeze(1)) for view in views.chunk(2)]
    z, h = [torch.cat(parts) for parts in zip(*outputs)]
    loss = view_loss(config)(h, rows.repeat(2), z)
    loss.backward()
    assert all(p.grad.device == META for name, p in networks.named_parameters() if "classifier" not in name)


def test_random_patches_and_the_angular_loss_read_nothing_back():
    data = clips_on(META)
    assert random_patches(data, torch.arange(5, device=META)).shape == (5, 101, 96)
    loss = AngularContrastiveLoss(0.3, first_loss=InfoNCE(0.2), constant=RELEASED_CONSTANT_OF_VIEWS)
    assert loss(torch.randn(8, 16, device=META), torch.arange(4, device=META).repeat(2), torch.randn(8, 16, device=META)).shape == ()


# A recording replays the same operations on the same addresses. Here that is done on the CPU.

class Recorded(TorchDispatchMode):
    """Notes every operation with the tensors that it was given and that it gave."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        given = function(*arguments, **(named or {}))
        self.operations.append((function, arguments, named or {}, given))
        return given


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for part in value for tensor in tensors_in(part)] if isinstance(value, (list, tuple)) else []


def address(tensor):
    return tensor.untyped_storage().data_ptr()


class FakeRecording:
    """As a CUDA graph: the first call runs as written, since the optimiser makes its state in it; the second is noted; each later one copies
    its rows in and repeats the operations where they were."""

    def __init__(self, run):
        self.run, self.noted, self.rows = run, None, None
        self.warm = False

    def __call__(self, rows):
        if not self.warm:
            self.warm = True
            self.run(rows)
            return
        if self.noted is None:
            self.rows = rows.clone()
            with Recorded() as self.noted:
                self.run(self.rows)
            return
        self.rows.copy_(rows)
        with torch.no_grad():
            for function, arguments, named, given in self.noted.operations:
                known = {address(tensor) for tensor in tensors_in(arguments) + tensors_in(list(named.values()))}
                again = function(*arguments, **named)
                for old, new in zip(tensors_in(given), tensors_in(again)):
                    if address(old) not in known:  # neither a view nor changed in place
                        old.copy_(new)


class Batch(nn.Module):
    """A small network with what makes recordings hard: batch norm, dropout, its own random numbers."""

    def __init__(self):
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm2d(1), nn.Dropout(0.3)
        self.hidden, self.classifier = nn.Linear(96, 16), nn.Linear(16, 5)

    def forward(self, patches):
        embedding = self.dropout(self.hidden(self.norm(patches).mean((1, 2))))
        return self.classifier(embedding.relu()), embedding


def weights_after(steps, *, recorded, rate, schedule=lambda optimiser: None, network=Batch):
    torch.manual_seed(0)
    made = network()
    optimiser = torch.optim.Adam(made.parameters(), lr=rate.clone() if isinstance(rate, torch.Tensor) else rate, fused=True)
    step = TrainingStep(made, patches_on("cpu"), AngularContrastiveLoss(0.5), optimiser, record=False)
    run = FakeRecording(step.run) if recorded else step.run
    torch.manual_seed(1)
    for number, rows in enumerate(torch.randperm(24 * 8, generator=torch.Generator().manual_seed(2)).remainder(24).split(12)[:steps]):
        run(rows)
        schedule(optimiser)
    return torch.cat([tensor.flatten().double() for tensor in made.state_dict().values()])


@pytest.mark.parametrize("network", [Batch, partial(PaperCNN, 5)], ids=["small", "paper"])
def test_a_recorded_training_is_the_unrecorded_one(network):
    """Weights, running statistics and dropout masks, bit for bit, over six steps."""
    torch.set_num_threads(1)
    plain, recorded = [weights_after(6, recorded=recorded, rate=torch.tensor(1e-3), network=network) for recorded in (False, True)]
    assert torch.equal(plain, recorded)
    assert not torch.equal(plain, weights_after(5, recorded=False, rate=torch.tensor(1e-3), network=network))


class Replacing:
    """A schedule that halves the rate and puts a number in the place of a tensor, as ReduceLROnPlateau of torch 2.6 does."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self):
        for group in self.optimizer.param_groups:
            group["lr"] = float(group["lr"]) / 2


def halve_and_keep(optimiser):
    step_schedule(Replacing(optimiser))


def halve(optimiser):
    Replacing(optimiser).step()


def test_a_recorded_step_sees_the_rate_fall():
    """Also under a schedule that replaces the tensor; without the remedy the rate would stay where it was, and nobody would know."""
    torch.set_num_threads(1)
    plain = weights_after(6, recorded=False, rate=torch.tensor(1e-2), schedule=halve_and_keep)
    assert torch.equal(weights_after(6, recorded=True, rate=torch.tensor(1e-2), schedule=halve_and_keep), plain)
    unnoticed = weights_after(6, recorded=True, rate=torch.tensor(1e-2), schedule=halve)
    assert not torch.equal(unnoticed, plain)


def test_a_margin_or_an_alpha_that_changes_is_frozen_by_a_recording():
    """Numbers of Python are part of what is recorded: a new value needs a new step, which is what every `fit` makes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = Batch()
    step = TrainingStep(network, patches_on("cpu"), AngularContrastiveLoss(0.5), torch.optim.SGD(network.parameters(), lr=torch.tensor(0.0)), record=False)
    run = FakeRecording(step.run)
    totals = []
    for alpha in (0.5, 0.5, 0.5, 1.0):
        step.loss = AngularContrastiveLoss(alpha)
        step.losses.zero_()
        network.dropout.p = 0.0
        torch.manual_seed(1)
        run(torch.arange(12))
        totals.append(step.losses[0].item())
    assert totals[2] == totals[3]


class StreamOfNothing:
    def __init__(self, device):
        self.device = device


def test_a_recording_refuses_rows_of_another_length(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", StreamOfNothing)
    recording = CudaRecording(lambda rows: None, torch.device("cpu"), warm_up=5)
    monkeypatch.setattr(recording, "_as_written", lambda: None)
    recording(torch.arange(8))
    with pytest.raises(ValueError, match="a recorded step takes 8 rows, got 1"):
        recording(torch.arange(1))


# Whatever the program around it has set


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try: yield
    finally: torch.set_default_dtype(torch.float32)


@contextmanager
def precision_of_today(value):
    backends = [torch.backends, torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = value
    try: yield
    finally:
        for backend, was in zip(backends, before):
            backend.fp32_precision = was


@contextmanager
def precision_of_before(value):
    torch.set_float32_matmul_precision(value)
    try: yield
    finally: torch.set_float32_matmul_precision("highest")


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try: yield
    finally: torch.use_deterministic_algorithms(False)


STATES = {
    "float64": partial(default_dtype, torch.float64), "bfloat16": partial(default_dtype, torch.bfloat16), "ieee": partial(precision_of_today, "ieee"),
    "tf32": partial(precision_of_today, "tf32"), "high": partial(precision_of_before, "high"), "medium": partial(precision_of_before, "medium"),
    "no gradients": torch.no_grad, "inference": torch.inference_mode, "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
    "another device": partial(torch.device, "meta"), "deterministic": deterministic,
}


def everything_made(split, clips, waveform, folder):
    """Weights of a training, a pre-training and a probe, and what the saved ones say of a waveform."""
    training = fit(split, TrainConfig(epochs=2, batch_size=32, patch_frames=20), **works.QUIET)
    predictions, _ = evaluate(training, split.test, pd.Series([f"{i}.wav" for i in range(6)]), device="cpu")
    settings = PretrainConfig(width=2, epochs=1, batch_size=8, patch_frames=33, patch_hop=16, n_neighbours=5, evaluate_every=1)
    pretraining = fit_encoder(clips, settings, **works.QUIET)
    probe = fit_probe(clips, ProbeConfig(task="finetune", epochs=1), pretrained=pretraining, **works.QUIET)
    told = [weight.tolist() for run in (training, pretraining, probe) for weight in run.network.state_dict().values()]
    for run in (training, pretraining, probe):
        save_run(folder / run.kind, run)
        told.append(Classifier.load(folder / run.kind, device="cpu").embed(waveform, sr=44_100).tolist())
    return [*told, predictions.values.tolist()]


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    made_of = works.random_split(), works.random_clips(), np.random.default_rng(0).uniform(-0.5, 0.5, 60_000)
    return made_of, everything_made(*made_of, tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize("state", STATES)
def test_torchs_global_state_changes_nothing_and_is_left_as_it_was(usual, state, tmp_path):
    made_of, expected = usual
    with STATES[state]():
        def settings(): return torch.get_default_dtype(), torch.is_grad_enabled(), torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision, \
            torch.backends.mkldnn.matmul.fp32_precision, torch.is_autocast_enabled("cpu"), torch.get_default_device()
        before = settings()
        assert everything_made(*made_of, tmp_path) == expected
        assert settings() == before


def test_bfloat16_follows_the_weights():
    """A step changes them; copies of them in bfloat16 must not outlive it, whatever context is around the training."""
    layer, x = torch.nn.Linear(4, 4), torch.ones(1, 4)
    with plain_float32("bfloat16"), torch.autocast("cpu", torch.bfloat16):
        with autocast(torch.device("cpu"), "bfloat16"):
            before = layer(x)
        with torch.no_grad():
            layer.weight.add_(1)
        with autocast(torch.device("cpu"), "bfloat16"):
            after = layer(x)
    assert before.dtype == torch.bfloat16
    assert torch.allclose(after, before + 4, atol=0.1)
