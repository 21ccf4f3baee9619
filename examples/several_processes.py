"""Two processes train one network with the loss of their joined batch: python several_processes.py

Each process has half of the batch; with `gather=True` its loss sees the rows of the other half too. The last
lines compare with one process that has the whole batch. On GPUs the backend is "nccl", and every rank moves
its network to its own device.
"""
import tempfile
from pathlib import Path

import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from acl_paper.losses import AngularContrastiveLoss

RANKS, BATCH, CLASSES = 2, 32, 4


class Network(nn.Module):
    """Embedding and logits of a row of 20 numbers."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, rows):
        embedding = self.body(rows)
        return embedding, self.head(embedding)


def step(network, rows, labels):
    """The loss of a batch, and what it leaves as gradients."""
    loss = AngularContrastiveLoss(alpha=0.5, gather=True)
    embedding, logits = network(rows)
    value = loss(embedding, labels, logits)
    value.backward()
    return value.detach(), [parameter.grad for parameter in network.parameters()]


def first_network_and_batch():
    """The same in every process."""
    torch.manual_seed(0)
    return Network(), torch.randn(BATCH, 20), torch.arange(BATCH) % CLASSES


def train(rank, folder):
    """What each process runs."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    network, rows, labels = first_network_and_batch()
    mine = slice(rank * BATCH // RANKS, (rank + 1) * BATCH // RANKS)
    result = step(DistributedDataParallel(network), rows[mine], labels[mine])
    torch.save(result, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    alone, gradients_alone = step(*first_network_and_batch())
    print(f"one process, {BATCH} rows: loss {alone:.6f}")
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(train, args=(folder,), nprocs=RANKS)
        for rank in range(RANKS):
            value, gradients = torch.load(Path(folder) / f"{rank}.pt")
            torch.testing.assert_close(value, alone)
            torch.testing.assert_close(gradients, gradients_alone)
            print(f"rank {rank}, {BATCH // RANKS} rows: loss {value:.6f}, the same gradients")
