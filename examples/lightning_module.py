"""The paper's loss in a Lightning module: python lightning_module.py

Needs pytorch-lightning; from the package `lightning` it is `import lightning.pytorch as pl`. In one process
`gather=True` does nothing; with `Trainer(strategy="ddp", devices=4)` the loss is that of the joined batch.
The data are eight Gaussian classes.
"""
import logging
import warnings

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from acl_paper.losses import AngularContrastiveLoss, pairwise_angles

CLASSES = 8


class Classifier(pl.LightningModule):
    """Logs the whole loss and its two parts."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(32, 16), nn.Linear(16, CLASSES)
        self.loss = AngularContrastiveLoss(alpha=0.5, gather=True)

    def training_step(self, batch):
        rows, labels = batch
        embedding = self.body(rows)
        terms = self.loss.terms(embedding, labels, self.head(embedding))
        self.log_dict({"loss": terms.total, "first": terms.first, "angular": terms.angular})
        return terms.total

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def gaussian_classes(n_rows=1024):
    centres = torch.randn(CLASSES, 32)
    labels = torch.arange(n_rows) % CLASSES
    return TensorDataset(centres[labels] + torch.randn(n_rows, 32), labels)


def report(model, dataset):
    """Accuracy, and the mean angle in a class and between classes."""
    rows, labels = dataset.tensors
    with torch.no_grad():
        embedding = model.body(rows)
        accuracy = (model.head(embedding).argmax(1) == labels).float().mean()
        theta, same = pairwise_angles(embedding), labels[:, None] == labels
    within, between = theta[same].mean(), theta[~same].mean()
    return f"accuracy {accuracy:.2f}, angle in a class {within:.2f} rad, between classes {between:.2f} rad"


torch.manual_seed(0)
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="pytorch_lightning")  # how many workers would load faster
dataset = gaussian_classes()
model = Classifier()
print("before:", report(model, dataset))
trainer = pl.Trainer(max_epochs=10, accelerator="cpu", logger=False, enable_checkpointing=False,
                     enable_progress_bar=False, enable_model_summary=False)
trainer.fit(model, DataLoader(dataset, batch_size=64, shuffle=True))
print("after: ", report(model, dataset))
