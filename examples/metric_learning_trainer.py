"""The paper's loss in a trainer of pytorch-metric-learning: python metric_learning_trainer.py

The trainer weighs cross-entropy of the logits by alpha and the angular loss of the embedding by 1 - alpha.
The data are eight Gaussian classes.
"""
import logging

import torch
from pytorch_metric_learning.reducers import SumReducer
from pytorch_metric_learning.trainers import TrainWithClassifier
from torch import nn
from torch.utils.data import TensorDataset

from acl_paper.losses import pairwise_angles
from acl_paper.metric_learning import AngularMarginLoss

ALPHA, CLASSES = 0.5, 8


def gaussian_classes(n_rows=1024):
    centres = torch.randn(CLASSES, 32)
    labels = torch.arange(n_rows) % CLASSES
    return TensorDataset(centres[labels] + torch.randn(n_rows, 32), labels)


def report(body, head, dataset):
    """Accuracy, and the mean angle in a class and between classes."""
    rows, labels = dataset.tensors
    with torch.no_grad():
        embedding = body(rows)
        accuracy = (head(embedding).argmax(1) == labels).float().mean()
        theta, same = pairwise_angles(embedding), labels[:, None] == labels
    within, between = theta[same].mean(), theta[~same].mean()
    return f"accuracy {accuracy:.2f}, angle in a class {within:.2f} rad, between classes {between:.2f} rad"


torch.manual_seed(0)
logging.getLogger("PML").setLevel(logging.ERROR)
dataset = gaussian_classes()
body, head = nn.Linear(32, 16), nn.Linear(16, CLASSES)
print("before:", report(body, head, dataset))
trainer = TrainWithClassifier(
    models={"trunk": body, "classifier": head},
    optimizers={
        "trunk_optimizer": torch.optim.Adam(body.parameters(), lr=1e-2),
        "classifier_optimizer": torch.optim.Adam(head.parameters(), lr=1e-2),
    },
    loss_funcs={
        "classifier_loss": nn.CrossEntropyLoss(),
        "metric_loss": AngularMarginLoss(reducer=SumReducer()),
    },
    loss_weights={"classifier_loss": ALPHA, "metric_loss": (1 - ALPHA) / 50},
    batch_size=64,
    dataset=dataset,
    dataloader_num_workers=0,
    data_device="cpu",
)
trainer.train(num_epochs=10)
print("after: ", report(body, head, dataset))
