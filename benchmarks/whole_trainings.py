r"""Whole trainings by `fit` and by a plain loop, on the same splits with the same seeds: do they end alike?

    python -m benchmarks.whole_trainings --dataset mini --subset noisy_small --epochs 40 \
      --out figures/batch_norm/mini-noisy_small.csv

The plain loop is written as one would write it first: contiguous memory, PyTorch's own batch norm, plain
Adam, nothing folded. "channels_last" is the same loop in the memory layout `channels_last`, with PyTorch's
own batch norm there: what `fit` did in the first edition. There is one row for each training; rows that the
file has already are not made again.
"""
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastcore.script import call_parse
from torch import nn

from acl_paper.console import write_atomically
from acl_paper.data import load_clips, locate_dataset
from acl_paper.evaluation import clip_outputs
from acl_paper.features import feature_store
from acl_paper.losses import AngularContrastiveLoss
from acl_paper.networks import ExactBatchNorm2d, PaperCNN
from acl_paper.patches import make_split
from acl_paper.training import TrainConfig, fit, validation_losses

def plain_network(n_classes: int, dropout: float) -> PaperCNN:
    "The paper's network with PyTorch's own batch norm."
    model = PaperCNN(n_classes, dropout=dropout)
    for name, layer in list(model.named_children()):
        if isinstance(layer, ExactBatchNorm2d):
            setattr(model, name, nn.BatchNorm2d(layer.num_features))
    return model


@torch.no_grad()
def outputs_of(model, patches):
    "Logits and embeddings of all patches, in evaluation mode."
    model.eval()
    parts = [model(patches[rows][0]) for rows in torch.arange(len(patches)).split(256)]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def plain_fit(split, config, layout=torch.contiguous_format):
    "The network with the lowest validation loss, that loss, and its epoch."
    torch.manual_seed(config.seed)
    model = plain_network(len(split.classes), config.dropout).to(memory_format=layout)
    loss = AngularContrastiveLoss(config.alpha)
    optimiser = torch.optim.Adam(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, foreach=False
    )
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, factor=config.lr_factor, patience=config.lr_patience
    )
    order = torch.Generator().manual_seed(config.seed)
    lowest = float("inf")
    best_epoch = 0
    weights = None
    for epoch in range(1, config.epochs + 1):
        model.train()
        for rows in torch.randperm(len(split.train), generator=order).split(config.batch_size):
            if len(rows) < config.batch_size:
                continue
            inputs, labels = split.train[rows]
            logits, embedding = model(inputs)
            optimiser.zero_grad()
            loss(embedding, labels, logits).backward()
            optimiser.step()
        logits, embedding = outputs_of(model, split.validation)
        validation = validation_losses(logits, embedding, split.validation.labels, loss)[0].item()
        schedule.step(validation)
        if validation < lowest:
            lowest = validation
            best_epoch = epoch
            weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(weights)
    return model, lowest, best_epoch


def by_fit(split, config):
    "The same of a training by `fit`."
    trained = fit(split, config, device="cpu", report_every_s=None)
    return trained.network, trained.history.validation_loss.min(), trained.best_epoch


WAYS = {
    "fit": by_fit,
    "plain": plain_fit,
    "channels_last": partial(plain_fit, layout=torch.channels_last),
}


def row_of(way, split, config):
    "One training: its best validation loss, and log-loss and accuracy over the test clips."
    model, lowest, best_epoch = WAYS[way](split, config)
    clips = clip_outputs(*outputs_of(model, split.test), split.test)
    probabilities = clips.scores / clips.n_patches[:, None]
    probability = probabilities[torch.arange(len(clips.labels)), clips.labels]
    right = clips.scores.argmax(1) == clips.labels
    return {
        "way": way,
        "seed": config.seed,
        "best_epoch": best_epoch,
        "validation_loss": lowest,
        "test_log_loss": -probability.log().mean().item(),
        "test_accuracy": right.double().mean().item(),
        "n_test_clips": len(clips.labels),
    }


def compared(table: pd.DataFrame, way: str = "fit", other: str = "plain") -> pd.DataFrame:
    """Means of two ways, and their paired difference over seeds.

    Parameters
    ----------
    table : DataFrame
        Rows made by `row_of`.
    way, other : str
        Of `WAYS`.

    Returns
    -------
    DataFrame
        One row per measure: both means, `difference` with its 95 % t interval from `low` to `high`, and
        `n_seeds`.
    """
    from scipy.stats import t as student_t

    rows = {}
    for measure in ("validation_loss", "test_log_loss", "test_accuracy"):
        wide = table.pivot(index="seed", columns="way", values=measure)[[way, other]].dropna()
        difference = wide[way] - wide[other]
        half = student_t.ppf(0.975, len(wide) - 1) * difference.std() / np.sqrt(len(wide))
        rows[measure] = {
            way: wide[way].mean(),
            other: wide[other].mean(),
            "difference": difference.mean(),
            "low": difference.mean() - half,
            "high": difference.mean() + half,
            "n_seeds": len(wide),
        }
    return pd.DataFrame(rows).T


def summarise(folder: str | Path) -> pd.DataFrame:
    """All comparisons of a folder of tables; also written there as summary.csv.

    Parameters
    ----------
    folder : str or Path
        Holds one CSV file for each data set and subset, made by this module.

    Returns
    -------
    DataFrame
        The rows of `compared`, each with the file's name (`trainings`) and the way that `fit` is compared with.
    """
    rows = []
    for path in sorted(Path(folder).glob("*.csv")):
        if path.name == "summary.csv":
            continue
        table = pd.read_csv(path)
        for other in sorted(set(table.way) - {"fit"}):
            result = compared(table, "fit", other).rename(columns={other: "other"})
            result = result.rename_axis("measure").reset_index()
            rows.append(result.assign(trainings=path.stem, compared_with=other))
    columns = ["trainings", "compared_with", "measure", "fit", "other", "difference", "low", "high", "n_seeds"]
    summary = pd.concat(rows)[columns]
    write_atomically(Path(folder) / "summary.csv", summary.round(4).to_csv(index=False))
    return summary


@call_parse
def main(dataset: str = "mini",  # name of the data set
         data_dir: str = None,  # its folder
         subset: str = "noisy_small",  # subset trained on
         epochs: int = 40,  # of each training
         alpha: float = 0.5,  # weight of the cross-entropy
         ways: str = "fit plain channels_last",  # which of the three
         seeds: int = 10,  # how many
         out: str = None):  # CSV file that rows are added to
    "Train, test and compare."
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    location = locate_dataset(dataset, data_dir)
    store = feature_store(location, report_every_s=None)
    clips = load_clips(location.root)
    path = Path(out)
    done = pd.DataFrame(columns=["way", "seed"])
    if path.is_file():
        done = pd.read_csv(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        config = TrainConfig(alpha=alpha, subset=subset, epochs=epochs, seed=seed)
        split = make_split(store, clips, config)
        for way in ways.split():
            if ((done.way == way) & (done.seed == seed)).any():
                continue
            done = pd.concat([done, pd.DataFrame([row_of(way, split, config)])], ignore_index=True)
            write_atomically(path, done.sort_values(["way", "seed"]).to_csv(index=False))
    for other in ways.split():
        if other != "fit":
            print(compared(done, "fit", other).round(4).to_string())
