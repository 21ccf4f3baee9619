"""The angular loss beside other losses of the embedding: one network, one budget, the same clips and seeds.

    python -m benchmarks.loss_comparison

Trained on the `clean` subset of the synthetic mini data set, with its labels and with a share of them
flipped. There is one row for each training. Rows that the file has already are not made again; rows of
another version of the set are dropped.
"""
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pytorch_metric_learning.losses import ArcFaceLoss, SupConLoss
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from acl_paper.console import command, project_root
from acl_paper.embedding_quality import tolerance, uniformity
from acl_paper.evaluation import accuracy, clip_outputs, evaluate, macro_accuracy, outputs_of
from acl_paper.features import FeatureStore
from acl_paper.losses import AngularContrastiveLoss
from acl_paper.patches import Patches, Split, make_split
from acl_paper.training import Run, TrainConfig, fit, optimiser_of
from benchmarks.mini_study import fill_rows, mini_data

TRAININGS = project_root() / "figures/loss_comparison/trainings.csv"
EMBEDDING_SIZE = 48  # of the paper's network
N_NEIGHBOURS = 5
FLIPPED = (0.0, 0.2, 0.4)  # shares of the labels


class CentreLoss(nn.Module):
    """Half the mean squared distance of an embedding from the centre of its class (Wen et al., 2016).

    Parameters
    ----------
    n_classes, embedding_size : int
        Centres, which are learnt with the network's weights, and their length.
    """
    def __init__(self, n_classes: int, embedding_size: int):
        super().__init__()
        self.centres = nn.Parameter(torch.randn(n_classes, embedding_size))

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        return (embedding - self.centres[labels]).square().sum(1).mean() / 2


class WithCrossEntropy(nn.Module):
    """Cross-entropy of the logits and another loss of the embedding, each with its weight.

    Parameters
    ----------
    other : Module
        Called with embedding (B, D) and labels (B,).
    first, second : float
        Weights of the cross-entropy and of the other loss.
    """
    def __init__(self, other: nn.Module, first: float = 0.5, second: float = 0.5):
        super().__init__()
        self.other, self.first, self.second = other, first, second

    def forward(self, embedding: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        return self.first * cross_entropy(logits, labels) + self.second * self.other(embedding, labels)


METHODS = {
    "cross-entropy": lambda n_classes: AngularContrastiveLoss(1.0),
    "ACL, alpha 0.9": lambda n_classes: AngularContrastiveLoss(0.9),
    "ACL, alpha 0.5": lambda n_classes: AngularContrastiveLoss(0.5),
    "ACL, alpha 0.1": lambda n_classes: AngularContrastiveLoss(0.1),
    "SupCon": lambda n_classes: WithCrossEntropy(SupConLoss()),
    "ArcFace": lambda n_classes: WithCrossEntropy(ArcFaceLoss(n_classes, EMBEDDING_SIZE)),
    "centre loss": lambda n_classes: WithCrossEntropy(CentreLoss(n_classes, EMBEDDING_SIZE), 1.0, 0.003),
}


def flip_labels(patches: Patches, share: float, n_classes: int, rng: np.random.Generator) -> Patches:
    """Patches of which a share of the clips have another label, any of the other classes.

    Parameters
    ----------
    patches : Patches
        Of training or validation clips.
    share : float
        Of the clips, in [0, 1].
    n_classes : int
        How many classes there are.
    rng : Generator
        Draws the clips and their labels.

    Returns
    -------
    Patches
        With labels of their own; all patches of a clip have the same one.
    """
    clips = patches.clips.unique()
    chosen = rng.permutation(len(clips))[:round(share * len(clips))]
    shifts = torch.zeros(int(clips.max()) + 1, dtype=torch.long)
    shifts[clips[chosen]] = torch.from_numpy(rng.integers(1, n_classes, len(chosen)))
    return replace(patches, labels=(patches.labels + shifts[patches.clips]) % n_classes)


def with_flipped_labels(split: Split, share: float, seed: int) -> Split:
    "The split with a share of training and of validation labels flipped; the test labels stay right."
    rng = np.random.default_rng([seed, round(100 * share)])
    flip = partial(flip_labels, share=share, n_classes=len(split.classes), rng=rng)
    return replace(split, train=flip(split.train), validation=flip(split.validation))


def train_with(method: str, split: Split, config: TrainConfig) -> Run:
    """Train the paper's network with one of `METHODS`; what the loss itself learns is trained along.

    Parameters
    ----------
    method : str
        One of `METHODS`.
    split : Split
        What is trained and validated on.
    config : TrainConfig
        The rest.
    """
    torch.manual_seed(config.seed)
    loss = METHODS[method](len(split.classes))

    def optimiser(parameters):
        return optimiser_of(config, [*parameters, *loss.parameters()], torch.device("cpu"))

    return fit(split, config, loss=loss, optimiser=optimiser, device="cpu", report_every_s=None)


def measure(run: Run, split: Split, clips: pd.DataFrame) -> dict:
    """What a trained network does on the test clips.

    Parameters
    ----------
    run : Run
        From `train_with`.
    split : Split
        The same.
    clips : DataFrame
        The data set's table.

    Returns
    -------
    dict
        `accuracy`, `macro_accuracy`, `knn_accuracy` (cosine, five nearest training clips with their labels as
        given), `uniformity` and `tolerance` of the clips' embeddings, `validation_accuracy`, `best_epoch`,
        and `right`, a digit for each test clip in order of its file name.
    """
    predictions, embeddings = evaluate(run, split.test, clips.fname, device="cpu")
    validation, _ = evaluate(run, split.validation, clips.fname, device="cpu")
    known = clip_outputs(*outputs_of(run.network, split.train), split.train)
    neighbours = KNeighborsClassifier(N_NEIGHBOURS, metric="cosine").fit(known.embeddings, known.labels)
    named = np.array(run.classes)[neighbours.predict(embeddings)]
    in_order = predictions.sort_values("fname")
    return {
        "accuracy": accuracy(predictions).value,
        "macro_accuracy": macro_accuracy(predictions),
        "knn_accuracy": float((named == predictions.truth).mean()),
        "uniformity": uniformity(embeddings),
        "tolerance": tolerance(embeddings, predictions.truth),
        "validation_accuracy": accuracy(validation).value,
        "best_epoch": run.best_epoch,
        "right": "".join(str(int(r)) for r in in_order.truth == in_order.prediction),
    }


def compared(store: FeatureStore, clips: pd.DataFrame, *, epochs: int, method: str, flipped: float,
             seed: int) -> dict:
    "Train once with a method, on labels of which a share is flipped, and measure."
    config = TrainConfig(subset="clean", seed=seed, epochs=epochs)
    split = with_flipped_labels(make_split(store, clips, config), flipped, seed)
    return measure(train_with(method, split, config), split, clips)


@command
def main(data_dir: str = None,  # folder of the mini data set; made on first use
         features_dir: str = None,  # folder of the feature stores
         seeds: int = 5,  # how many, from 0
         epochs: int = 40,  # of each training
         out: str = TRAININGS):  # CSV file that rows are added to
    "Train with each loss, share of flipped labels and seed, and print mean accuracies."
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    cells = [{"method": method, "flipped": flipped, "seed": seed}
             for seed in range(seeds) for flipped in FLIPPED for method in METHODS]
    rows = fill_rows(Path(out), cells, partial(compared, *mini_data(data_dir, features_dir), epochs=epochs))
    print((100 * rows.pivot_table(index="method", columns="flipped", values="accuracy")).round(1).to_string())


if __name__ == "__main__":
    main()
