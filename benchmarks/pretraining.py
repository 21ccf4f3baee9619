"""Pre-training on augmented views: the straightforward way, this package's way, and a ceiling, in turns.

    python -m benchmarks.pretraining --repeats 5 --out figures/benchmark/pretraining.json
"""
import json
import math
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate, max_pool2d, normalize, relu
from torch.utils.flop_counter import FlopCounterMode

from acl_paper.augment import crop_boxes
from acl_paper.console import command, write_atomically
from acl_paper.evaluation import tuned
from acl_paper.features import SSL_FEATURES
from acl_paper.networks import ProjectionHead, ResNet18
from acl_paper.patches import ClipFrames, ClipSplit, InputScale
from acl_paper.pretraining import PretrainConfig, Pretraining, pretrain_epoch
from acl_paper.runs import software_versions
from benchmarks.tables import benchmark_table
from benchmarks.timing import cpu_seconds, machine, stay_in, summarise, take_turns

WAYS = ("reference", "memory given back", "ours", "arithmetic alone")  # there is also "bfloat16"
# Width of the encoder, clips in a batch, batches in a turn
SIZES = {"small preset": (16, 64, 8), "the paper's ResNet-18": (64, 32, 2)}
N_WORKERS = 2  # of the reference way's data loader


class NumpyViews(torch.utils.data.Dataset):
    """Two augmented views of each clip, one value after the other from numpy's generator.

    Parameters
    ----------
    clips : list of ndarray
        (T, F) float32 log-mel frames of each.
    scale : InputScale
        Applied to each view.
    patch_frames : int
        Length of a view.
    """

    def __init__(self, clips: list[np.ndarray], scale: InputScale, patch_frames: int = 101):
        self.clips = clips
        self.scale = scale
        self.patch_frames = patch_frames

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        level = np.float32(np.random.uniform(0, 0.05))
        return tuple(self.scale(self._view(i, level))[None] for _ in range(2))

    def _patch(self, i):
        start = np.random.randint(len(self.clips[i]) - self.patch_frames + 1)
        return self.clips[i][start:start + self.patch_frames]

    def _view(self, i, level):
        "Mixed with another clip, cropped and stretched, made quieter, with noise."
        power = 10 ** self._patch(i)
        other = 10 ** self._patch((i + np.random.randint(1, len(self))) % len(self))
        patch = np.log10((1 - level) * power + level * power.sum() / other.sum() * other)
        top, left, frames, bands = crop_boxes(1, *patch.shape)[0].int().tolist()
        box = torch.from_numpy(patch[top:top + frames, left:left + bands])[None, None]
        patch = interpolate(box, size=patch.shape, mode="bilinear")[0, 0].numpy()
        patch = patch * np.random.uniform(0.75, 1)
        noise = np.random.normal(0, np.random.uniform(0, 0.01), patch.shape)
        return patch + noise.astype(np.float32)


class ReferenceResNet(ResNet18):
    "`ResNet18` with every operation as written in its description."

    def embed(self, patches: Tensor) -> Tensor:
        """Embeddings (B, D) of patches (B, 1, T, F)."""
        x = max_pool2d(relu(self.norm(self.conv(patches))), 3, stride=2, padding=1)
        for block in self.blocks:
            inside = relu(block.norm1(block.conv1(x)))
            inside = block.norm2(block.conv2(inside))
            x = relu(inside + block.shortcut(x))
        return x.mean((2, 3))


def reference_pretraining_loss(
    z: Tensor, h: Tensor, *, alpha: float = 0.3, temperature: float = 0.2, margin_rad: float = 0.5
) -> Tensor:
    """The loss for two views, `view_loss`, in the released code's scaling, as one would write it down.

    Parameters
    ----------
    z : Tensor
        (2 B, P) projections of the first views, then of the second views.
    h : Tensor
        (2 B, D) embeddings in the same order.
    alpha : float
        Weight of InfoNCE.
    temperature : float
        Of InfoNCE.
    margin_rad : float
        Of the angular loss, in radians.

    Returns
    -------
    Tensor
        A scalar.
    """
    itself = torch.eye(len(z), dtype=torch.bool)
    partner = torch.arange(len(z)).roll(len(z) // 2)
    same = itself[partner]
    z = normalize(z, dim=1)
    h = normalize(h, dim=1)
    info_nce = cross_entropy((z @ z.T / temperature).masked_fill(itself, -torch.inf), partner)
    theta = (h @ h.T).clamp(-1 + 1e-7, 1 - 1e-7).acos()
    too_near = (margin_rad - theta[~same & ~itself]).clamp(min=0)
    angular = theta[same].square().sum() + too_near.square().sum()
    return alpha * info_nce + (1 - alpha) * angular / 25


@cache
def encoder_work(width: int) -> float:
    """Floating-point operations of a ResNet-18 on one view, forward and backward.

    Parameters
    ----------
    width : int
        Channels after its first convolution.
    """
    with FlopCounterMode(display=False) as counter:
        ResNet18(width=width).embed(torch.randn(2, 1, 101, 96)).sum().backward()
    return counter.get_total_flops() / 2


def prepare_pretraining(way: str, width: int, batch_size: int, n_steps: int) -> Callable:
    """A turn pre-trains a ResNet-18 for one epoch of random frames.

    Parameters
    ----------
    way : str
        One of `WAYS`, or "bfloat16".
    width : int
        Of the encoder.
    batch_size : int
        Clips in a batch.
    n_steps : int
        Batches in a turn.

    Returns
    -------
    callable
        The turn; its unit is a view.
    """
    torch.manual_seed(0)
    if way == "arithmetic alone":
        return partial(_matrix_products, width, 2 * batch_size * n_steps)
    data = _random_clips(batch_size * n_steps)
    precision = "bfloat16" if way == "bfloat16" else "float32"
    config = PretrainConfig(width=width, batch_size=batch_size, precision=precision)
    if way == "reference":
        epoch = _reference_pretraining(data, config)
    else:
        split = ClipSplit(data, data, data, [str(c) for c in range(20)], SSL_FEATURES)
        epoch = partial(pretrain_epoch, Pretraining(split, config))
    if way in ("ours", "bfloat16"):
        stay_in(tuned(precision))

    def turn():
        before = cpu_seconds()
        epoch()
        return {"units": 2 * len(data), "cpu_s": cpu_seconds() - before}

    return turn


def _random_clips(n_clips):
    n_frames = torch.randint(101, 1000, (n_clips,))
    frames = torch.randn(int(n_frames.sum()), 96)
    return ClipFrames(frames, n_frames.cumsum(0) - n_frames, n_frames, 0 * n_frames, torch.arange(n_clips))


def _matrix_products(width, n_views, size=1024):
    "As many operations as the encoder needs for so many views, in products of square matrices."
    a = torch.randn(size, size)
    views_a_product = 2 * size**3 / encoder_work(width)
    n_products = math.ceil(n_views / views_a_product)
    for _ in range(n_products):
        a @ a
    return {"units": n_products * views_a_product}


def _reference_pretraining(data, config):
    clips = [frames.numpy() for frames in data.frames.split(data.n_frames.tolist())]
    encoder = ReferenceResNet(20, width=config.width)
    head = ProjectionHead(encoder.embedding_size)
    optimiser = torch.optim.SGD(
        [*encoder.parameters(), *head.parameters()],
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    views_of_clips = NumpyViews(clips, InputScale(0.0, 1.0))

    def epoch():
        losses = []
        loader = torch.utils.data.DataLoader(
            views_of_clips,
            config.batch_size,
            shuffle=True,
            num_workers=N_WORKERS,
            multiprocessing_context="fork",
        )
        for views in loader:
            h = [encoder.embed(view) for view in views]
            z = torch.cat([head(part) for part in h])
            loss = reference_pretraining_loss(z, torch.cat(h), alpha=config.alpha)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        return losses

    return epoch


def pretraining_study(
    repeats: int = 3,
    threads: tuple[int, ...] = (1, 2),
    sizes: dict[str, tuple[int, int, int]] = SIZES,
    ways: tuple[str, ...] = WAYS,
) -> dict:
    """Time the ways of pre-training in turns.

    Parameters
    ----------
    repeats : int
        Rounds that count.
    threads : tuple of int
        Numbers of threads to try.
    sizes : dict
        By name, width, clips in a batch, batches in a turn.
    ways : tuple of str
        Some of `WAYS`, or "bfloat16"; "reference" has to be one of them.

    Returns
    -------
    dict
        `machine`, `versions`, `settings`, and a section for each size and number of threads, as
        `run_benchmark` gives them, in seconds per view.
    """
    sections = {}
    for name, size in sizes.items():
        for n_threads in threads:
            prepared = {way: (prepare_pretraining, (way, *size)) for way in ways}
            times = take_turns(prepared, repeats=repeats, n_threads=n_threads)
            sections[f"{name}, threads: {n_threads}"] = {"unit": "view", "ways": summarise(times)}
    settings = {"repeats": repeats, "sizes": sizes, "workers": N_WORKERS}
    return {"machine": machine(), "versions": software_versions(), "settings": settings, "sections": sections}


@command
def main(
    repeats: int = 3,  # rounds that count
    threads: str = "1 2",  # numbers of threads to try
    sizes: str = ",".join(SIZES),  # one or both of these
    ways: str = ",".join(WAYS),  # some of these, or bfloat16; reference has to be there
    out: str = None,  # JSON file to write
):
    "Time pre-training against the straightforward way; no data are needed."
    chosen_sizes = sizes.split(",")
    chosen_ways = ways.split(",")
    unknown = {*chosen_sizes, *chosen_ways} - {*SIZES, *WAYS, "bfloat16"}
    if unknown:
        choices = ", ".join((*SIZES, *WAYS, "bfloat16"))
        raise SystemExit(f"benchmarks.pretraining: there is no {', '.join(sorted(unknown))} among {choices}")
    if "reference" not in chosen_ways:
        raise SystemExit("benchmarks.pretraining: --ways must have reference among them")
    result = pretraining_study(
        repeats,
        tuple(map(int, threads.split())),
        {name: SIZES[name] for name in chosen_sizes},
        tuple(chosen_ways),
    )
    if out:
        write_atomically(Path(out), json.dumps(result, indent=1) + "\n")
    print(benchmark_table(result).to_string())


if __name__ == "__main__":
    main()
