"""What is timed of the supervised half: from audio to features, to patches, to a network, to predictions.

Each `prepare_…` gets one way ready and returns the function that does a turn of it, for
`benchmarks.timing.take_turns`.
"""
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from acl_paper.data import AUDIO_FOLDERS, audio_path, load_clips
from acl_paper.evaluation import evaluate
from acl_paper.features import FeatureStore, extract_features, open_feature_store
from acl_paper.networks import PaperCNN
from acl_paper.patches import Patches, Split, make_split
from acl_paper.training import Run, TrainConfig, fit
from benchmarks.reference import (
    ReferenceCNN,
    ReferencePatches,
    reference_angular_loss,
    reference_epoch,
    reference_evaluation,
    reference_extraction,
    reference_preparation,
)
from benchmarks.rehearsal import write_clip_tables

SAMPLE_RATE = 44_100
NOISE_S = 9.0


def write_noise(root: str | Path, n_clips: int, duration_s: float = NOISE_S) -> list[Path]:
    """A data set of coloured noise, 16-bit at 44.1 kHz, all of it training clips but one.

    Parameters
    ----------
    root : str or Path
        Folder to make.
    n_clips : int
        How many.
    duration_s : float
        Of each.

    Returns
    -------
    list of Path
        The audio files.
    """
    import soundfile

    root = Path(root)
    rng = np.random.default_rng(0)
    plan = pd.DataFrame({"fname": [f"{number}.wav" for number in range(n_clips)]})
    plan = plan.assign(label="noise", aso_id="", manually_verified=1, noisy_small=0, split="train")
    plan.loc[n_clips - 1, "split"] = "test"
    for name in AUDIO_FOLDERS.values():
        (root / name).mkdir(parents=True)
    write_clip_tables(root, plan)
    paths = [audio_path(root, row.split, row.fname) for row in plan.itertuples()]
    for path in paths:
        noise = rng.standard_normal(round(SAMPLE_RATE * duration_s)).cumsum()
        soundfile.write(path, 0.02 * noise % 1 - 0.5, SAMPLE_RATE, subtype="PCM_16")
    return paths


def prepare_features(way: str, n_clips: int) -> Callable:
    """A turn extracts the features of `n_clips` clips of nine seconds, on one thread.

    Parameters
    ----------
    way : str
        "reference" or "ours".
    n_clips : int
        How many.

    Returns
    -------
    callable
        The turn; its unit is an hour of audio.
    """
    folder = Path(tempfile.mkdtemp())
    paths = write_noise(folder / "noise", n_clips)

    def turn():
        if way == "reference":
            reference_extraction(paths, folder / "reference.h5")
        else:
            store = extract_features(folder / "noise", folder / "ours.h5", n_jobs=1, report_every_s=None)
            store.path.unlink()
        return {"units": n_clips * NOISE_S / 3600}

    return turn


def prepare_preparation(way: str, data_dir: str, store_path: str) -> Callable:
    """A turn takes the feature store to standardised training patches of the subset `all`.

    Parameters
    ----------
    way : str
        "reference", or "ours", which makes validation and test patches too.
    data_dir : str
        Folder of the data set.
    store_path : str
        Its feature store.

    Returns
    -------
    callable
        The turn; its unit is a training patch.
    """
    clips = load_clips(data_dir)
    store = open_feature_store(store_path)
    config = TrainConfig(subset="all")
    starts = starts_in_store(store, make_split(store, clips, config).train)

    def ours():
        return {"units": len(make_split(open_feature_store(store_path), clips, config).train)}

    def reference():
        return {"units": len(reference_preparation(store, starts))}

    return reference if way == "reference" else ours


def starts_in_store(store: FeatureStore, patches: Patches) -> np.ndarray:
    """Where the clip of each patch begins.

    Parameters
    ----------
    store : FeatureStore
        Of the data set.
    patches : Patches
        Of a split of it.

    Returns
    -------
    ndarray
        (P,) numbers of frames in the store: where the reference way reads a patch of the same clip.
    """
    return store.clips.offset[patches.clips.tolist()].to_numpy()


def some_patches(patches: Patches, n_patches: int) -> Patches:
    """The first patches of a split, over all of its frames.

    Parameters
    ----------
    patches : Patches
        Of a split.
    n_patches : int
        How many; where there are fewer, they begin again with the first.
    """
    rows = torch.arange(n_patches) % len(patches)
    chosen = {name: getattr(patches, name)[rows] for name in ("starts", "labels", "clips")}
    return replace(patches, **chosen)


def prepare_training(
    way: str, data_dir: str, store_path: str, n_steps: int, validate: bool, device: str
) -> Callable:
    """A turn trains `n_steps` steps of 64 patches of the subset `all`.

    Parameters
    ----------
    way : str
        "reference", or the package's way in a precision of `TrainConfig`.
    data_dir : str
        Folder of the data set.
    store_path : str
        Its feature store.
    n_steps : int
        The reference way does 20 at most.
    validate : bool
        With as much validation as belongs to so many steps, or with two patches only.
    device : str
        Where the network is trained.

    Returns
    -------
    callable
        The turn; its unit is a step.
    """
    clips = load_clips(data_dir)
    store = open_feature_store(store_path)
    config = TrainConfig(subset="all", epochs=2, precision="float32" if way == "reference" else way)
    split = make_split(store, clips, config)
    if way == "reference":
        n_steps = min(n_steps, 20)
    n_validation = 2
    if validate:
        n_validation = round(n_steps * 64 * len(split.validation) / len(split.train))
    split = replace(
        split,
        train=some_patches(split.train, 64 * n_steps),
        validation=some_patches(split.validation, n_validation),
    )
    if way == "reference":
        return _reference_training(split, store, n_steps, device)
    return partial(package_training, split, n_steps, config, device)


def package_training(split: Split, n_steps: int, config: TrainConfig, device: str) -> dict:
    """Train with `fit`, the function that real runs call, and tell the last epoch's time.

    Parameters
    ----------
    split : Split
        What is trained on.
    n_steps : int
        Steps in an epoch of it.
    config : TrainConfig
        With two epochs or more: in the first one, everything finds its place.
    device : str
        Where the network is trained.

    Returns
    -------
    dict
        `units`, `wall_s` of the last epoch, `cpu_s` of the mean epoch.
    """
    cpu = time.process_time()
    history = fit(split, config, device=device, report_every_s=None).history
    cpu = time.process_time() - cpu
    return {"units": n_steps, "wall_s": history.seconds.iloc[-1], "cpu_s": cpu / len(history)}


def _reference_training(split, store, n_steps, device):
    train, validation = (
        ReferencePatches(store.path, starts_in_store(store, patches), patches.labels.numpy(), split.scaler)
        for patches in (split.train, split.validation)
    )
    held_out = torch.utils.data.DataLoader(validation, batch_size=64)
    torch.manual_seed(0)
    model = ReferenceCNN(len(split.classes)).to(device)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-3)

    def turn():
        model.train()
        reference_epoch(model, train, optimiser, device=device)
        model.eval()
        with torch.no_grad():
            for patches, labels in held_out:
                labels = labels.to(device)
                logits, embedding = model(patches.to(device))
                (cross_entropy(logits, labels) + reference_angular_loss(embedding, labels)).item()
        return {"units": n_steps}

    return turn


def prepare_evaluation(way: str, data_dir: str, store_path: str, device: str) -> Callable:
    """A turn predicts all test clips with a network of random weights.

    Parameters
    ----------
    way : str
        "reference", or the package's way in a precision of `TrainConfig`.
    data_dir : str
        Folder of the data set.
    store_path : str
        Its feature store.
    device : str
        Where the network is.

    Returns
    -------
    callable
        The turn; its unit is a test clip.
    """
    clips = load_clips(data_dir)
    store = open_feature_store(store_path)
    split = make_split(store, clips, TrainConfig(subset="noisy_small"))
    test = clips[clips.split == "test"]
    literal = ReferenceCNN(len(split.classes)).eval().to(device)
    model = PaperCNN(len(split.classes)).eval()
    config = TrainConfig(precision="float32" if way == "reference" else way)
    run = Run("training", model, split.scaler, config, split.features, split.classes, pd.DataFrame(), 1)

    def ours():
        predictions, _ = evaluate(run, split.test, clips.fname, device=device)
        return {"units": len(predictions)}

    def reference():
        return {"units": len(reference_evaluation(literal, store, test, split.scaler, device))}

    return reference if way == "reference" else ours
