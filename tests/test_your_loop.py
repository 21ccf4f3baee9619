"""The loss in other people's loops: the scripts of the folder `examples`, the loss in several processes, and pytorch-metric-learning's wrappers."""
import re
import sys
from importlib.util import find_spec

import pytest
import torch
from helpers import ROOT, run
from pytorch_metric_learning.losses import CrossBatchMemory, SelfSupervisedLoss
from pytorch_metric_learning.miners import MultiSimilarityMiner, TripletMarginMiner
from pytorch_metric_learning.utils import loss_and_miner_utils
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from acl_paper.losses import AngularContrastiveLoss, InfoNCE, angular_margin_loss, gather_ranks
from acl_paper.metric_learning import Angle, AngularMarginLoss

RANKS = 2


# The examples

def said(name):
    done = run([sys.executable, ROOT / "examples" / f"{name}.py"], environ={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def plain():
    return said("plain_loop")


def test_the_plain_loop_learns(plain):
    before, after = plain.splitlines()
    accuracy, within, between = map(float, re.findall(r"\d\.\d\d", after))
    assert accuracy > 0.95 and within < 0.3 * between
    assert float(re.search(r"accuracy (\d\.\d\d)", before)[1]) < 0.3


@pytest.mark.parametrize(("name", "package"), [
    ("metric_learning_trainer", "pytorch_metric_learning"),
    ("lightning_module", "pytorch_lightning"),
])
def test_others_loops_do_the_same(name, package, plain):
    """To the last figure: they draw the same batches from the same seed."""
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    assert said(name) == plain


# Several processes, in more ways than the example has, which nbs/02_losses.ipynb runs

class Network(nn.Module):
    """Embedding h and projections z of rows of 12 numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(12, 10), nn.Linear(10, 6)

    def forward(self, rows):
        h = self.body(rows)
        return h, self.head(h)


def batch():
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(8) % 3
    labels[5] = -100
    return torch.randn(8, 2, 12, generator=generator, dtype=torch.float64), labels


def of_labels(rows, labels, network, **settings):
    h, z = network(rows[:, 0])
    return AngularContrastiveLoss(0.4, **settings)(h, labels, z)


def of_rows(rows, labels, network, **settings):
    h, z = network(rows[:, 0])
    return AngularContrastiveLoss(0.4, reduction="none", **settings)(h, labels, z).mean()


def of_views(rows, labels, network, **settings):
    """Two views of each clip and no labels: the clips of all ranks are different ones."""
    h, z = network(rows)
    return AngularContrastiveLoss(0.4, first_loss=InfoNCE(), views=True, **settings)(h, None, z)


def of_the_library(rows, labels, network, gather=False):
    h, _ = network(rows[:, 0])
    loss = AngularMarginLoss()
    return (DistributedLossWrapper(loss) if gather else loss)(h, labels)


def of_the_librarys_memory(rows, labels, network, gather=False):
    h, _ = network(rows[:, 0])
    memory = CrossBatchMemory(AngularMarginLoss(), embedding_size=10, memory_size=32)
    loss = DistributedLossWrapper(memory) if gather else memory
    return loss(h.detach() + 1, labels) + loss(h, labels)  # the first fills the memory


WAYS = {way.__name__: way for way in (of_labels, of_rows, of_views, of_the_library, of_the_librarys_memory)}


def value_and_gradients(way, rows, labels, network, **settings):
    value = way(rows, labels, network, **settings)
    value.backward()
    return value.detach(), [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def in_parallel(way, rows, labels):
    network = DistributedDataParallel(Network().double(), find_unused_parameters=True)
    return value_and_gradients(way, rows, labels, network, gather=True)


def in_a_process(rank, folder, unequal):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    rows, labels = batch()
    mine = slice(5 * rank, 5 * rank + 5) if unequal else slice(4 * rank, 4 * rank + 4)
    if unequal:
        with pytest.raises(ValueError) as error:
            gather_ranks(rows[mine])
        told = str(error.value)
    else:
        told = {name: in_parallel(way, rows[mine], labels[mine]) for name, way in WAYS.items()}
    torch.save(told, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def of_all_ranks(folder, unequal=False):
    multiprocessing.start_processes(in_a_process, args=(folder, unequal), nprocs=RANKS, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return of_all_ranks(tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", [name for name in WAYS if "library" not in name])
def test_two_processes_are_one_with_the_joined_batch(name, ranks):
    """Value and gradients, in float64."""
    value, gradients = value_and_gradients(WAYS[name], *batch(), Network().double())
    assert value > 0 and all(gradient.abs().max() > 0 for gradient in gradients)
    for told in ranks:
        torch.testing.assert_close(told[name], (value, gradients), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", [name for name in WAYS if "library" in name])
def test_the_librarys_wrapper_over_processes(name, ranks):
    """The gradients are those of the joined batch; the value is multiplied by the number of processes."""
    value, gradients = value_and_gradients(WAYS[name], *batch(), Network().double())
    for told in ranks:
        told_value, told_gradients = told[name]
        torch.testing.assert_close(told_value, RANKS * value, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(told_gradients[:2], gradients[:2], rtol=1e-12, atol=1e-14)


def test_unequal_batches_are_refused_in_every_process(tmp_path):
    told = of_all_ranks(tmp_path, unequal=True)
    assert told[0] == told[1] and told[0].startswith("the processes have 5, 3 rows")


def test_without_processes_nothing_is_gathered():
    rows, _ = batch()
    assert gather_ranks(rows) is rows


# A value for each row

def test_no_row_is_lost_in_a_reduction():
    rows, labels = batch()
    rows = rows[:, 0]
    values = angular_margin_loss(rows, labels, reduction="none")
    counted = labels != -100
    assert values[~counted].abs().max() == 0
    torch.testing.assert_close(values[counted].mean(), angular_margin_loss(rows, labels, reduction="mean"))
    by_hand = [angular_margin_loss(rows[[i, j]], labels[[i, j]], reduction="sum") / 2 for i in range(1) for j in range(1, 8) if counted[j]]
    torch.testing.assert_close(values[0], torch.stack(by_hand).mean())


# Settings

@pytest.mark.parametrize(("name", "value", "expected"), [
    ("alpha", 7, "between 0"), ("alpha", "0.5", "between 0"), ("margin_rad", 4, r"in \[0, pi\]"), ("margin_rad", "wide", r"in \[0, pi\]"),
    ("reduction", "average", '"none"'), ("constant", 0, "above 0"), ("constant", None, "above 0"),
])
def test_settings_stay_what_they_may_be(name, value, expected):
    loss = AngularContrastiveLoss(0.5)
    before = getattr(loss, name)
    with pytest.raises(ValueError, match=expected):
        setattr(loss, name, value)
    assert getattr(loss, name) == before


def test_settings_of_other_losses_are_checked_too():
    for loss, name, value in ((InfoNCE(), "temperature", 0), (InfoNCE(), "reduction", "sum"), (AngularMarginLoss(), "margin_rad", 30)):
        with pytest.raises(ValueError, match=name):
            setattr(loss, name, value)


def test_a_miners_indices_in_the_place_of_logits():
    rows, labels = batch()
    indices = TripletMarginMiner()(rows[:, 0], labels)
    with pytest.raises(TypeError, match="first_input .* got a tuple of 3; the indices of a miner go to acl_paper.metric_learning.AngularMarginLoss"):
        AngularContrastiveLoss(0.5)(rows[:, 0], labels, indices)
    assert AngularMarginLoss()(rows[:, 0], labels, indices).isfinite()


# pytorch-metric-learning

@pytest.fixture
def pairs():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(24, 12, generator=generator), torch.arange(24) % 5


def test_a_memory_as_long_as_the_batch_adds_nothing(pairs):
    for miner in (None, TripletMarginMiner(margin=0.1), MultiSimilarityMiner(distance=None)):
        memory = CrossBatchMemory(AngularMarginLoss(), embedding_size=12, memory_size=24, miner=miner)
        for _ in range(3):
            expected = AngularMarginLoss()(*pairs, miner(*pairs) if miner else None)
            torch.testing.assert_close(memory(*pairs), expected)


def test_a_memory_of_two_batches(pairs):
    rows, labels = pairs
    memory = CrossBatchMemory(AngularMarginLoss(), embedding_size=12, memory_size=48)
    memory(rows.flip(0), labels)
    theta = Angle()(rows, torch.cat([rows.flip(0), rows]))
    same = labels[:, None] == labels.repeat(2)
    others = torch.cat([torch.ones(24, 24), 1 - torch.eye(24)], dim=1).bool()
    of_pairs = torch.where(same, theta.square(), (0.5 - theta).clamp_min(0).square())
    torch.testing.assert_close(memory(rows, labels), of_pairs[others].mean())


@pytest.mark.parametrize("symmetric", [True, False])
def test_views_without_labels(symmetric, pairs):
    rows = pairs[0]
    first, second = rows[:12], rows[12:]
    value = SelfSupervisedLoss(AngularMarginLoss(), symmetric=symmetric)(first, second)
    if symmetric:
        expected = angular_margin_loss(rows, torch.arange(12).repeat(2), reduction="mean")
    else:
        theta = Angle()(first, second)
        expected = torch.where(torch.eye(12).bool(), theta.square(), (0.5 - theta).clamp_min(0).square()).mean()
    torch.testing.assert_close(value, expected)


def test_indices_do_for_labels(pairs):
    rows, labels = pairs
    for indices in (loss_and_miner_utils.get_all_pairs_indices(labels), MultiSimilarityMiner()(rows, labels), TripletMarginMiner()(rows, labels)):
        with_labels = AngularMarginLoss()(rows, labels, indices)
        assert with_labels == AngularMarginLoss()(rows, indices_tuple=indices) == AngularMarginLoss()(rows, indices_tuple=indices, ref_emb=rows)
