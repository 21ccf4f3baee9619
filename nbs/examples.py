"""Data sets made of numbers, for the examples and tests of the notebooks: no audio, a second to make."""
from pathlib import Path

import numpy as np
import pandas as pd

from acl_paper.features import FeatureConfig, FeatureStore

COLUMNS = ["fname", "label", "label_id", "aso_id", "split", "manually_verified", "noisy_small"]


def numbers_dataset(n_classes=4, clips_per_class=12, n_mels=96, seed=0):
    "A feature store and its table of clips: each class is a spectral shape, each clip that shape in noise."
    rng = np.random.default_rng(seed)
    shapes = rng.standard_normal((n_classes, n_mels))
    rows = [(f"{k}.wav", f"class_{c}", c, "/m/x", split, k < clips_per_class // 2, False)
            for split in ("train", "test") for c in range(n_classes) for k in range(clips_per_class)]
    clips = pd.DataFrame(rows, columns=COLUMNS)
    n_frames = rng.integers(101, 260, len(clips))
    frames = np.concatenate([shapes[c] + 2 * rng.standard_normal((n, 1)) + 2 * rng.standard_normal((n, n_mels))
                             for c, n in zip(clips.label_id, n_frames)])
    return _store("numbers.h5", clips, n_frames, frames, frames_per_s=50), clips


def toy_dataset(n_classes=6, clips_per_class=40, seed=0):
    """A feature store of 32 bands and its table of clips, 60 to 150 frames each: a third of the training clips clean.

    A class is the spacing of three partials and the rate at which they beat; the pitch wanders.
    """
    rng = np.random.default_rng(seed)
    spacings, rates = rng.uniform(3, 8, n_classes), rng.uniform(0.1, 0.9, n_classes)
    rows = [(f"{split}{c}_{k}.wav", f"class_{c}", c, "/m/x", split, k < clips_per_class // 3 or split == "test", False)
            for split in ("train", "test") for c in range(n_classes) for k in range(clips_per_class)]
    clips = pd.DataFrame(rows, columns=COLUMNS)
    n_frames = rng.integers(60, 150, len(clips))
    frames = np.concatenate([_partials(rng, n, spacings[c], rates[c]) for c, n in zip(clips.label_id, n_frames)])
    return _store("toy.h5", clips, n_frames, frames, frames_per_s=100), clips


def _wander(rng, n_frames, size):
    return np.convolve(rng.normal(0, size, n_frames + 40), np.hanning(31), "same")[20:20 + n_frames, None]


def _partials(rng, n_frames, spacing, rate):
    "Log power of three beating partials over a wandering noise, (n_frames, 32)."
    frame, band = np.arange(n_frames)[:, None], np.arange(32)
    power = 10**(_wander(rng, n_frames, 0.2) - 2.5) * rng.gamma(2, 1, (n_frames, 32))
    lowest = 6 + _wander(rng, n_frames, 0.8)
    for partial in range(3):
        envelope = 0.5 + 0.5 * np.sin(rate * frame + rng.uniform(0, 6))
        power = power + 10**_wander(rng, n_frames, 0.15) * envelope * np.exp(-(band - lowest - partial * spacing)**2 / 2)
    return np.log10(power + 1.1e-8)


def _store(name, clips, n_frames, frames, frames_per_s):
    table = clips[["split", "fname"]].assign(offset=np.cumsum(n_frames) - n_frames, n_frames=n_frames, duration_s=n_frames / frames_per_s, problem="")
    return FeatureStore(Path(name), FeatureConfig(n_mels=frames.shape[1]), table, frames.astype(np.float32))
