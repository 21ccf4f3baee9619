"""The paper's loss in a loop of plain PyTorch: python plain_loop.py

The network gives an embedding and logits; the loss takes both. The data are eight Gaussian classes.
"""
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from acl_paper.losses import AngularContrastiveLoss, pairwise_angles

CLASSES = 8


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
dataset = gaussian_classes()
body, head = nn.Linear(32, 16), nn.Linear(16, CLASSES)
print("before:", report(body, head, dataset))
loss = AngularContrastiveLoss(alpha=0.5)  # for batches of 64: of other sizes see its docstring
optimiser = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-2)
for epoch in range(10):
    for rows, labels in DataLoader(dataset, batch_size=64, shuffle=True):
        embedding = body(rows)
        logits = head(embedding)
        optimiser.zero_grad()
        loss(embedding, labels, logits).backward()
        optimiser.step()
print("after: ", report(body, head, dataset))
