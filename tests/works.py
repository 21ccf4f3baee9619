"""Work that tests interrupt, each piece small and the same every time.

Each function puts something into a folder; it needs nothing of a test, so that a process of its own can do it.
"""
import numpy as np
import pandas as pd
import torch

from acl_paper.download import download_fsdnoisy18k
from acl_paper.evaluation import evaluate
from acl_paper.features import FeatureConfig, extract_features
from acl_paper.mini import MiniConfig, make_mini
from acl_paper.patches import ClipFrames, ClipSplit, Patches, Scaler, Split
from acl_paper.pretraining import PretrainConfig
from acl_paper.pretraining import fit as fit_encoder
from acl_paper.probing import ProbeConfig
from acl_paper.probing import fit as fit_probe
from acl_paper.runs import load_run, save_run
from acl_paper.training import TrainConfig, fit

SMALL = FeatureConfig(sample_rate=8000, min_duration_s=0.1, n_fft=256, win_length=200, hop_length=100, n_mels=8, fmax_hz=4000.0)
TINY_MINI = MiniConfig(clean_per_class=1, noisy_per_class=1, noisy_small_per_class=1, test_per_class=1)
QUIET = {"device": "cpu", "report_every_s": None}
CLASSES = ["None", "Wörter, viele", "c"]


def extract(folder, root):
    folder.mkdir(exist_ok=True)
    extract_features(root, folder / "x.h5", config=SMALL, n_jobs=2, report_every_s=None)


def mini(folder):
    make_mini(folder / "mini", TINY_MINI, n_jobs=1, every_s=None)


def download(folder, url, md5s):
    download_fsdnoisy18k(folder, base_url=url, md5s=md5s, say=lambda line: None)


def random_split():
    """Ninety-six training clips of one patch each, of sixteen bands."""
    generator = torch.Generator().manual_seed(0)

    def patches(n):
        return Patches(torch.randn(20 * n, 16, generator=generator), 20 * torch.arange(n), torch.arange(n) % 3, torch.arange(n), 20)

    return Split(patches(96), patches(12), patches(6), Scaler(np.zeros(16), np.ones(16)), CLASSES, FeatureConfig(n_mels=16))


def train(folder, **settings):
    """A training with a checkpoint after every step, and what it leaves."""
    split = random_split()
    config = TrainConfig(epochs=3, batch_size=8, patch_frames=20, **settings)
    trained = fit(split, config, checkpoint=f"{folder}/checkpoint.pt", checkpoint_every_s=0, **QUIET)
    predictions, embeddings = evaluate(trained, split.test, pd.Series([f"{i}.wav" for i in range(6)]), device="cpu")
    save_run(folder, trained, predictions=predictions, embeddings=embeddings, about={"data": {"name": "random", "synthetic": True}})


def random_clips():
    """Twenty-four clips of forty to ninety frames."""
    generator = torch.Generator().manual_seed(0)
    n_frames = torch.randint(40, 90, (24,), generator=generator)
    frames = torch.randn(int(n_frames.sum()), 32, generator=generator)
    data = ClipFrames(frames, n_frames.cumsum(0) - n_frames, n_frames, torch.arange(24) % 3, torch.arange(24))
    return ClipSplit(data, data, data, CLASSES, FeatureConfig(n_mels=32))


def pretrain(folder):
    """A pre-training with a checkpoint after every epoch, and what it leaves."""
    config = PretrainConfig(width=2, epochs=5, batch_size=8, patch_frames=33, patch_hop=16, n_neighbours=5, evaluate_every=3)
    save_run(folder, fit_encoder(random_clips(), config, checkpoint=f"{folder}/checkpoint.pt", checkpoint_every_s=0, **QUIET))


def probe(folder, pretrained):
    """Fine-tuning, which has no checkpoint and begins anew."""
    config = ProbeConfig(task="finetune", epochs=3)
    save_run(folder, fit_probe(random_clips(), config, pretrained=load_run(pretrained), **QUIET))
