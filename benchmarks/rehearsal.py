"""A rehearsal of FSDnoisy18k: a data set of its size with made-up features, to time things on.

    python -m benchmarks.rehearsal --dest data/rehearsal --features_dir data/features --scale 0.03

It has the published numbers of clips and minutes of every class and part. Its features are drawn, not
extracted: a class is a smooth spectrum with a rhythm, a clip adds its own colour, level and noise, and two
noisy labels in five are wrong. Its test clips have a moment of noise as audio, since the notebooks play some
of them. No accuracy reached on it is a result.
"""
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.io import wavfile

import acl_paper
from acl_paper.console import DatasetError, command, write_atomically
from acl_paper.data import AUDIO_FOLDERS, CLIP_TABLES, load_clips
from acl_paper.features import (
    ExtractedClip,
    FeatureConfig,
    FeatureStore,
    assemble_store,
    open_feature_store,
    write_group,
)
from acl_paper.fingerprints import source_fingerprint

PARTS = ("clean", "noisy", "test")
COLUMNS = ["label", "aso_id", "split", "manually_verified", "noisy_small", "duration_s"]
DURATION_LIMITS_S = (0.3, 30.0)
WRONG_LABELS = 0.4  # of the noisy training clips


def published_classes() -> pd.DataFrame:
    """FSDnoisy18k's clips and minutes, as its authors publish them.

    Returns
    -------
    DataFrame
        One row per class: `aso_id`, `clean_clips`, `clean_min` and so on; the index is the class name.
    """
    table = Path(acl_paper.__file__).parent / "published" / "fsdnoisy18k_classes.csv"
    return pd.read_csv(table, index_col="label")


def draw_durations(rng: np.random.Generator, n_clips: int, total_s: float) -> np.ndarray:
    """Durations between 0.3 and 30 s with a given sum, most of them short.

    Parameters
    ----------
    rng : Generator
        What they are drawn with.
    n_clips : int
        How many.
    total_s : float
        Their sum in seconds, or the nearest one that the limits allow.

    Returns
    -------
    ndarray
        Seconds, (n_clips,).
    """
    relative = np.exp(0.9 * rng.standard_normal(n_clips))
    low = 1e-3
    high = 1e3
    for _ in range(60):
        factor = np.sqrt(low * high)
        if np.clip(factor * relative, *DURATION_LIMITS_S).sum() < total_s:
            low = factor
        else:
            high = factor
    return np.clip(low * relative, *DURATION_LIMITS_S)


def plan_rehearsal(scale: float = 1.0, seed: int = 0) -> pd.DataFrame:
    """The clips of a rehearsal.

    Parameters
    ----------
    scale : float
        Clips and minutes of each class and part are the published ones times this, with two clips at least.
    seed : int
        Another one gives other durations and another order.

    Returns
    -------
    DataFrame
        One row per clip: `fname`, `label`, `aso_id`, `split`, `manually_verified`, `noisy_small`,
        `duration_s`.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for label, published in published_classes().iterrows():
        for part in PARTS:
            rows += _plan_part(rng, label, published, part, scale)
    plan = pd.DataFrame(rows, columns=COLUMNS)
    plan = plan.sample(frac=1, random_state=seed)
    plan = plan.sort_values("split", ascending=False, kind="stable", ignore_index=True)
    return plan.assign(fname=[f"{number:06d}.wav" for number in range(len(plan))])


def _plan_part(rng, label, published, part, scale):
    "Rows of one class and part."
    count = max(2, round(scale * published[f"{part}_clips"]))
    seconds = 60 * published[f"{part}_min"] * count / published[f"{part}_clips"]
    small = np.zeros(count, bool)
    if part == "noisy":
        small = rng.permutation(count) < max(2, round(scale * published.noisy_small_clips))
    durations = draw_durations(rng, count, seconds)
    split = "test" if part == "test" else "train"
    verified = int(part == "clean")
    about = (label, published.aso_id, split, verified)
    return [(*about, int(flag), duration) for flag, duration in zip(small, durations)]


def class_templates(
    n_classes: int, config: FeatureConfig, rng: np.random.Generator, *, period_frames: int = 50
) -> np.ndarray:
    """A spectrum with a rhythm for each class.

    Parameters
    ----------
    n_classes : int
        How many.
    config : FeatureConfig
        Says how many mel bands there are.
    rng : Generator
        What bumps and rhythms are drawn with.
    period_frames : int
        Frames after which a template repeats.

    Returns
    -------
    ndarray
        (n_classes, period_frames, n_mels) float32, in powers of ten.
    """
    bands = np.arange(config.n_mels)
    frames = np.arange(period_frames)
    centres = rng.uniform(0, config.n_mels, (n_classes, 4, 1))
    widths = rng.uniform(3, 15, (n_classes, 4, 1))
    spectrum = np.exp(-0.5 * ((bands - centres) / widths) ** 2).sum(1) - 1
    beats = rng.integers(1, 9, (n_classes, 1))
    phases = rng.uniform(0, 2 * np.pi, (n_classes, 1))
    rhythm = 0.5 * np.cos(2 * np.pi * beats * frames / period_frames + phases)
    return (spectrum[:, None, :] + rhythm[:, :, None]).astype(np.float32)


def draw_frames(
    template: np.ndarray, duration_s: float, config: FeatureConfig, rng: np.random.Generator
) -> np.ndarray:
    """Made-up log-mel frames of a clip, as many as real audio of that duration has.

    Parameters
    ----------
    template : ndarray
        (period_frames, n_mels), of the class that is to be heard.
    duration_s : float
        Of the clip.
    config : FeatureConfig
        Says how many frames a second has.
    rng : Generator
        What colour, level, noise and start are drawn with.

    Returns
    -------
    ndarray
        (T, n_mels) float32.
    """
    n_samples = round(max(duration_s, config.min_duration_s) * config.sample_rate)
    frames = rng.standard_normal((1 + n_samples // config.hop_length, config.n_mels), np.float32)
    slope = rng.normal(0, 0.5) * np.linspace(-1, 1, config.n_mels, dtype=np.float32)
    start = rng.integers(len(template))
    level = np.float32(rng.normal(-2, 0.5))
    return frames + slope + level + np.resize(np.roll(template, -start, 0), frames.shape)


def make_rehearsal(
    dest: str | Path,
    features_dir: str | Path,
    *,
    scale: float = 1.0,
    seed: int = 0,
    config: FeatureConfig = FeatureConfig(),
) -> FeatureStore:
    """A data set with FSDnoisy18k's tables and made-up features: for timing, never for results.

    Train on it with ``papermill nbs/train.ipynb out.ipynb -r data_dir DEST -r features_dir FEATURES_DIR``.

    Parameters
    ----------
    dest : str or Path
        Folder to make, in FSDnoisy18k's layout; of audio, a moment for each test clip. 6 MB at most.
    features_dir : str or Path
        Where stores are; 2.9 GB at scale 1, in ``rehearsal/<configuration>.h5``.
    scale : float
        See `plan_rehearsal`.
    seed : int
        Another one gives other durations and features.
    config : FeatureConfig
        What the features are said to be made with.

    Returns
    -------
    FeatureStore
        If `dest` holds this very rehearsal and its store is there, nothing is made.

    Raises
    ------
    DatasetError
        if one of the places holds something else.
    """
    dest = Path(dest)
    path = Path(features_dir) / "rehearsal" / f"{config.digest}.h5"
    about = {
        "name": "rehearsal",
        "synthetic": True,
        "scale": scale,
        "seed": seed,
        "features": "drawn at random around one template a class",
    }
    if _holds(dest, about) and path.is_file():
        return open_feature_store(path, config)
    if dest.exists() and any(dest.iterdir()):
        raise DatasetError(f"{dest} holds something else already; give another folder for the rehearsal")
    if path.exists():
        raise DatasetError(f"{path} holds another rehearsal; give another features_dir")
    plan = plan_rehearsal(scale, seed)
    write_clip_tables(dest, plan)
    _write_sounds(dest, plan)
    clips = load_clips(dest)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        groups = list(_draw_groups(Path(folder), clips, plan, config, seed))
        assemble_store(path, clips, config, groups, source_fingerprint(dest, clips))
    write_atomically(dest / "dataset.json", json.dumps(about, indent=1))
    return open_feature_store(path, config)


def _holds(dest, about):
    "Whether the folder holds the rehearsal that `about` describes."
    told = dest / "dataset.json"
    return told.is_file() and json.loads(told.read_text()) == about


def write_clip_tables(dest: Path, plan: pd.DataFrame) -> None:
    """Write FSDnoisy18k's tables of training and test clips.

    Parameters
    ----------
    dest : Path
        Folder of the data set.
    plan : DataFrame
        One row per clip, as `plan_rehearsal` returns them.
    """
    for split, (name, columns) in CLIP_TABLES.items():
        (dest / name).parent.mkdir(parents=True, exist_ok=True)
        plan.loc[plan.split == split, list(columns)].to_csv(dest / name, index=False)


def _write_sounds(dest, plan):
    "A moment of noise for every test clip, which notebooks play."
    folder = dest / AUDIO_FOLDERS["test"]
    folder.mkdir()
    noise = np.random.default_rng(0).normal(0, 3000, 2400).astype(np.int16)
    for fname in plan.fname[plan.split == "test"]:
        wavfile.write(folder / fname, 8000, noise)


def _draw_groups(folder, clips, plan, config, seed, group_clips=64) -> Iterator[Path]:
    "Files with the frames of some clips each, made one after the other: no more than one group is in memory."
    rng = np.random.default_rng([seed, 1])
    templates = class_templates(clips.label_id.max() + 1, config, rng)
    wrong = ~clips.manually_verified & (rng.random(len(clips)) < WRONG_LABELS)
    sound = np.where(wrong, rng.integers(len(templates), size=len(clips)), clips.label_id)
    for start in range(0, len(clips), group_clips):
        rows = range(start, min(start + group_clips, len(clips)))
        target = folder / f"{start:07d}.zip"
        drawn = (draw_frames(templates[sound[row]], plan.duration_s[row], config, rng) for row in rows)
        write_group(target, map(ExtractedClip, drawn, plan.duration_s[list(rows)]))
        yield target


@command
def main(
    dest: str = "data/rehearsal",  # folder to make, in FSDnoisy18k's layout
    features_dir: str = "data/features",  # where the store of made-up features goes
    scale: float = 1.0,  # 1 is FSDnoisy18k's size (2.9 GB); 0.03 trains in a minute on a CPU
    seed: int = 0,  # another seed gives other durations and features
):
    "Make a rehearsal of FSDnoisy18k: its tables and sizes with made-up features, to time the whole table."
    try:
        store = make_rehearsal(dest, features_dir, scale=scale, seed=seed)
    except (DatasetError, OSError) as error:
        raise SystemExit(f"benchmarks.rehearsal: {error}") from None
    hours = store.clips.duration_s.sum() / 3600
    print(f"{len(store.clips)} clips, {hours:.1f} h, all made up; train on them:")
    print(
        f"  papermill nbs/train.ipynb out.ipynb -r data_dir {dest} -r features_dir {features_dir}"
        " -p alpha 0.5 -p subset clean"
    )


if __name__ == "__main__":
    main()
