"""What makes a step of training faster on a CPU: one change after the other, each on top of those before."""
from collections.abc import Callable

import torch

from acl_paper.evaluation import tuned
from acl_paper.losses import AngularContrastiveLoss
from acl_paper.networks import ExactBatchNorm2d, PaperCNN
from benchmarks.reference import ReferenceCNN, use_plain_convolution
from benchmarks.timing import stay_in

# "compiled" is on top of "fused Adam" and in float32
LADDER = (
    "reference",
    "channels last",
    "ReLU after pool",
    "memory kept",
    "norm after pool",
    "first gradient",
    "fused Adam",
    "bfloat16",
    "compiled",
)


class NormFirst(ExactBatchNorm2d):
    "A batch norm that is taken before the pool."


def network_of(has: Callable) -> PaperCNN:
    """The network with some of the changes.

    Parameters
    ----------
    has : callable
        Whether a change, by its name in `LADDER`, is made.
    """
    if not has("ReLU after pool"):
        return ReferenceCNN(20)
    network = PaperCNN(20)
    if not has("norm after pool"):
        network.norm2, network.norm3 = NormFirst(24), NormFirst(48)
    if not has("first gradient"):
        use_plain_convolution(network)
    return network


def prepare_steps(way: str, n_steps: int) -> Callable:
    """A turn is steps on one random batch of 64, so that only the network, the loss and the optimiser count.

    Parameters
    ----------
    way : str
        One of `LADDER`: all of its changes up to this one are made.
    n_steps : int
        In a turn.

    Returns
    -------
    callable
        The turn; its unit is a step.
    """

    def has(change):
        return LADDER.index(way) >= LADDER.index(change)

    torch.manual_seed(0)
    model = network_of(has)
    if has("channels last"):
        model = model.to(memory_format=torch.channels_last)
    if has("memory kept"):
        stay_in(tuned("float32"))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-3, fused=has("fused Adam"))
    network = torch.compile(model) if way == "compiled" else model
    loss = AngularContrastiveLoss(0.5)
    patches = torch.randn(64, 1, 100, 96)
    labels = torch.randint(20, (64,))

    def turn():
        for _ in range(n_steps):
            optimiser.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=way == "bfloat16"):
                logits, features = network(patches)
            loss(features.float(), labels, logits.float()).backward()
            optimiser.step()
        return {"units": n_steps}

    return turn
