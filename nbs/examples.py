"""Data sets and run folders made of numbers, for the examples and tests of the notebooks: no audio, a second to make."""
import json
from pathlib import Path

import numpy as np
import pandas as pd

from acl_paper.data import SUBSETS
from acl_paper.features import FeatureConfig, FeatureStore
from acl_paper.mini import MINI_CLASSES

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


def made_up_run(root, subset, alpha, seed, right, *, test_fold="", **changes):
    """The folder of a finished run that no network made: 240 test clips of twenty classes, right with a chosen probability.

    Easy clips are easy for every run, so that runs are correlated as real ones are. A mistake is one of the next three classes.
    With smaller alpha the clips that are heard as one class lie closer together.
    """
    folder = Path(root, "made-up", subset, *([f"test_fold={test_fold}"] if test_fold else []), f"alpha={alpha}", f"seed={seed}")
    folder.mkdir(parents=True)
    rng = np.random.default_rng([seed, round(100 * alpha), SUBSETS.index(subset)])
    predictions = _predictions(rng, right)
    predictions.to_csv(folder/"predictions.csv", index=False)
    centres = np.random.default_rng(1).standard_normal((len(MINI_CLASSES), 8))
    heard = predictions.prediction.map(list(MINI_CLASSES).index)
    np.save(folder/"embeddings.npy", centres[heard] + (0.3 + 0.3 * alpha) * rng.standard_normal((len(heard), 8)))
    _history(rng, alpha).to_csv(folder/"history.csv", index=False)
    settings = {"alpha": alpha, "subset": subset, "seed": seed, "test_fold": test_fold, "epochs": 12} | changes
    _write(folder, {"kind": "training", "settings": settings}, accuracy=float((predictions.truth == predictions.prediction).mean()),
           n_test_clips=len(predictions), validation_accuracy=right - 0.05)


def made_up_probe(root, probe, alpha, seed, right, *, temperature=0.2, epochs=20, untrained=None):
    "The folder of a finished probe that no network made, with no more in it than what tables need."
    task, subset = probe.split("-")
    folder = Path(root, "made-up/pretrain/resnet18", f"alpha={alpha}/temperature={temperature}/seed={seed}", probe, f"seed={seed}")
    folder.mkdir(parents=True)
    encoder = {"network": "resnet18", "width": 16, "alpha": alpha, "temperature": temperature, "seed": seed, "epochs": epochs, "best_epoch": seed}
    classifier = {"task": task, "subset": subset, "seed": seed, "epochs": 5 if task == "linear" else 3}
    _write(folder, {"kind": "probe", "settings": classifier, "pretrained": encoder, "untrained": untrained and {"accuracy": untrained}},
           accuracy=right, macro_accuracy=right - 0.02, patch_weighted_micro_accuracy=right + 0.01, n_test_clips=240)


def _predictions(rng, right, n_clips=240):
    classes = np.array(list(MINI_CLASSES))
    easy = np.random.default_rng(99).random(n_clips)
    truth = np.arange(n_clips) % len(classes)
    is_right = 0.7 * easy + 0.3 * rng.random(n_clips) < 0.15 + 0.7 * right  # the sum is even between 0.3 and 0.7
    others = (truth + rng.integers(1, 4, n_clips)) % len(classes)
    table = pd.DataFrame({"fname": [f"{k}.wav" for k in range(n_clips)], "truth": classes[truth]})
    return table.assign(prediction=classes[np.where(is_right, truth, others)])


def _history(rng, alpha, epochs=12):
    "Losses that fall; angles of one class that shrink, more with smaller alpha, and of other classes that grow."
    epoch = np.arange(1, epochs + 1)
    fall = np.exp(-epoch / 4)
    history = {"epoch": epoch}
    for clips, above in (("train", 0), ("validation", 0.3)):
        first = above + (3 + rng.normal(0, 0.1, epochs)) * fall
        angular = above + (1 + alpha + rng.normal(0, 0.1, epochs)) * fall
        history |= {f"{clips}_loss": alpha * first + (1 - alpha) * angular, f"{clips}_first": first, f"{clips}_angular": angular}
    for kind, median in (("same", 0.1 + 0.15 * alpha + 0.2 * fall), ("other", 0.6 - 0.3 * fall)):
        history |= {f"{kind}_angle_q{q}": median * factor for q, factor in ((10, 0.6), (50, 1), (90, 1.5))}
    return pd.DataFrame(history)


def _write(folder, config, **metrics):
    data = {"name": "made-up", "synthetic": True, "source": "0"}
    config = config | {"features": {"n_mels": 96}, "classes": list(MINI_CLASSES), "data": data, "versions": {"numpy": np.__version__}}
    (folder/"config.json").write_text(json.dumps(config))
    (folder/"metrics.json").write_text(json.dumps(metrics))
