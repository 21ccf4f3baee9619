"""The losses on what a training may throw at them: any size, any dtype, any device, values that are not numbers, labels that do not count."""
import math
from decimal import Decimal
from fractions import Fraction
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from acl_paper.evaluation import clip_outputs, neighbour_votes, prediction_table
from acl_paper.losses import (IGNORED, AngularContrastiveLoss, InfoNCE, angular_margin_loss, info_nce,
                              pairwise_angles, unit_vectors)
from acl_paper.patches import Patches
from acl_paper.robust_losses import FIRST_LOSSES

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
LOSSES = {
    "released": angular_margin_loss,
    "mean": partial(angular_margin_loss, reduction="mean"),
    "info_nce": info_nce,
    "both": lambda rows, labels: AngularContrastiveLoss(0.5, first_loss=InfoNCE())(rows, labels, rows),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def batch(seed=0, n=16, d=24):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64), torch.arange(n) % 5


def with_gradient(loss, rows, labels):
    rows = rows.clone().requires_grad_()
    value = loss(rows, labels)
    value.backward()
    return value.detach(), rows.grad


# Ordinary input: nothing has changed, to the last bit

def plain_angular(rows, labels):
    """As one writes it down."""
    length = rows.norm(dim=1, keepdim=True)
    unit = rows / length
    theta = (unit @ unit.T).clamp(-1 + 1e-7, 1 - 1e-7).acos()
    pairs = torch.where(labels[:, None] == labels, theta.square(), (0.5 - theta).clamp_min(0).square())
    return pairs.masked_fill(torch.eye(len(rows), dtype=torch.bool), 0).sum() / 50


def plain_info_nce(rows, labels):
    unit = F.normalize(rows, dim=1)
    itself = torch.eye(len(rows), dtype=torch.bool)
    log_share = (unit @ unit.T / 0.2).masked_fill(itself, -math.inf).log_softmax(1)
    positive = (labels[:, None] == labels) & ~itself
    return (-torch.where(positive, log_share, 0).sum(1) / positive.sum(1).clamp_min(1)).mean()


@pytest.mark.parametrize(("loss", "plain"), [(angular_margin_loss, plain_angular), (info_nce, plain_info_nce)])
@pytest.mark.parametrize("size", [1e-2, 1.0, 37.0, 1e4])
def test_ordinary_rows_are_the_plain_formula_bit_for_bit(loss, plain, size):
    for seed in range(5):
        rows, labels = batch(seed, n=20)
        rows = (rows * size).float()
        for ours, theirs in zip(with_gradient(loss, rows, labels), with_gradient(plain, rows, labels)):
            assert torch.equal(ours, theirs)


# Size

@every_loss
@pytest.mark.parametrize("size", [1e-35, 1e-30, 1e-20, 1e-13, 1e13, 1e20, 1e30, 1e35])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_size_of_a_row_does_not_matter(loss, size, dtype):
    """The loss is the same, the gradient goes with one over the size."""
    rows, labels = batch()
    rows = (rows * size).to(dtype)  # rounded: the same numbers in float64
    value, gradient = with_gradient(loss, rows, labels)
    exact, exact_gradient = with_gradient(loss, rows.double() / size, labels)
    assert value.item() == pytest.approx(exact.item(), rel=1e-5)
    shown = gradient.double() * size
    assert torch.allclose(shown, exact_gradient, rtol=0.02 if dtype == torch.bfloat16 else 1e-3, atol=1e-3 * exact_gradient.abs().max().item())


@every_loss
@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e160, 1e300])
def test_nor_in_float64(loss, size):
    rows, labels = batch()
    value, gradient = with_gradient(loss, rows * size, labels)
    exact, exact_gradient = with_gradient(loss, rows, labels)
    assert value.item() == pytest.approx(exact.item(), rel=1e-12)
    assert torch.allclose(gradient * size, exact_gradient, rtol=1e-9)


def test_rows_of_different_sizes_meet_in_one_batch():
    rows, labels = batch()
    sizes = torch.logspace(-36, 36, len(rows), dtype=torch.float64)[:, None]
    mixed = (rows * sizes).float()
    others = ~torch.eye(len(rows), dtype=torch.bool)
    assert torch.allclose(pairwise_angles(mixed)[others].double(), pairwise_angles(mixed.double() / sizes)[others], atol=2e-6)


@every_loss
@pytest.mark.parametrize(("dtype", "size"), [(torch.float16, 1e-6), (torch.float16, 6e-8), (torch.float16, 3e4), (torch.bfloat16, 1e-39),
                                             (torch.float32, 1e-40), (torch.float32, 1e-44), (torch.float64, 1e-315)])
def test_gradients_stay_finite_where_the_true_ones_cannot_be_held(loss, dtype, size):
    """And none is lost: each row with a direction is moved."""
    rows, labels = batch()
    rows = (rows * size).clamp(-6e4, 6e4).to(dtype) if dtype == torch.float16 else (rows * size).to(dtype)
    value, gradient = with_gradient(loss, rows, labels)
    assert value.isfinite() and gradient.isfinite().all() and gradient.dtype == dtype
    assert (gradient.abs().amax(1) > 0).all()


def test_an_overflow_that_the_caller_made_is_not_hidden():
    """A gradient scaler looks for it."""
    rows, labels = batch()
    rows = rows.half().requires_grad_()
    (angular_margin_loss(rows, labels) * 1e7).backward()
    assert not rows.grad.isfinite().all()


# Rows without a direction

@every_loss
@every_dtype
def test_a_row_of_zeros_passes_no_gradient_and_disturbs_none(loss, dtype):
    rows, labels = batch()
    rows = rows.to(dtype)
    largest = with_gradient(loss, rows, labels)[1].abs().max()
    rows[[3, 8]] = 0
    value, gradient = with_gradient(loss, rows, labels)
    assert value.isfinite()
    assert gradient[[3, 8]].abs().max() == 0
    assert gradient.abs().max() < 3 * largest


@every_loss
@every_dtype
def test_all_rows_zero(loss, dtype):
    _, labels = batch()
    value, gradient = with_gradient(loss, torch.zeros(len(labels), 8, dtype=dtype), labels)
    assert value.isfinite() and gradient.abs().max() == 0


# Not a number

@every_loss
@every_dtype
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["one value", "one row", "all rows", "the only row"])
def test_what_is_not_a_number_shows(loss, dtype, broken, where):
    rows, labels = batch()
    rows, labels = (rows[:1], labels[:1]) if where == "the only row" else (rows, labels)
    rows = rows.to(dtype)
    rows[{"one value": (0, 3), "one row": 0, "all rows": slice(None), "the only row": 0}[where]] = broken
    assert loss(rows, labels).isnan()


def test_without_positives_too():
    rows, _ = batch()
    rows[4, 4] = math.nan
    assert info_nce(rows, torch.arange(16)).isnan()
    assert angular_margin_loss(rows, torch.arange(16)).isnan()


# Labels that do not count

@every_loss
@every_dtype
@pytest.mark.parametrize("garbage", [1.0, 0.0, math.nan, math.inf])
def test_ignored_rows_count_in_no_way(loss, dtype, garbage):
    """The loss is that of the other rows, and the ignored ones are not moved, whatever they hold."""
    rows, labels = batch()
    rows = rows.to(dtype)
    labels[[0, 5, 6, 15]] = IGNORED
    kept = labels != IGNORED
    expected, expected_gradient = with_gradient(loss, rows[kept], labels[kept])
    rows[~kept] *= garbage
    value, gradient = with_gradient(loss, rows, labels)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(gradient[kept], expected_gradient, rtol=0.02, atol=1e-5)
    assert gradient[~kept].abs().max() == 0


@every_loss
def test_all_rows_ignored(loss):
    rows, labels = batch()
    value, gradient = with_gradient(loss, rows, torch.full_like(labels, IGNORED))
    assert value == 0 and gradient.abs().max() == 0


@pytest.mark.parametrize(("first_loss", "ignored"), [
    (F.cross_entropy, -100),
    (nn.CrossEntropyLoss(), -100),
    (nn.CrossEntropyLoss(ignore_index=255), 255),
    (partial(F.cross_entropy, ignore_index=-1), -1),
    (partial(nn.CrossEntropyLoss(ignore_index=7)), 7),
    (nn.CrossEntropyLoss(ignore_index=9).forward, 9),
    *((loss, -100) for name, loss in FIRST_LOSSES.items() if name != "cross_entropy"),
])
def test_both_terms_leave_out_the_same_rows(first_loss, ignored):
    rows, labels = batch()
    logits = batch(seed=1, d=5)[0]
    loss = AngularContrastiveLoss(0.5, first_loss=first_loss)
    expected = loss.terms(rows[:9], labels[:9], logits[:9])
    labels[9:] = ignored
    for ours, theirs in zip(loss.terms(rows, labels, logits), expected):
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    assert torch.equal(angular_margin_loss(rows, labels, ignore_index=ignored), loss.terms(rows, labels, logits).angular)


def test_a_loss_of_the_callers_own_says_what_it_ignores():
    rows, labels = batch()
    logits = batch(seed=1, d=5)[0]
    labels[9:] = -7
    loss = AngularContrastiveLoss(0.5, first_loss=lambda x, y: F.cross_entropy(x, y, ignore_index=-7), ignore_index=-7)
    assert loss(rows, labels, logits).item() == pytest.approx(loss(rows[:9], labels[:9], logits[:9]).item(), rel=1e-12)


def test_a_first_loss_that_is_changed_later_says_what_it_ignores():
    loss = AngularContrastiveLoss(0.5)
    assert loss.ignore_index == IGNORED
    loss.first_loss = nn.CrossEntropyLoss(ignore_index=3)
    assert loss.ignore_index == 3
    loss.first_loss.ignore_index = 4
    assert loss.ignore_index == 4
    loss.ignore_index = 5
    assert loss.ignore_index == 5


def test_ignored_rows_count_in_no_pair_of_metric_learning():
    metric_learning = pytest.importorskip("acl_paper.metric_learning", exc_type=ImportError)
    rows, labels = batch()
    loss = metric_learning.AngularMarginLoss()
    expected = loss(rows[:9], labels[:9])
    labels[9:] = IGNORED
    assert loss(rows, labels).item() == pytest.approx(expected.item(), rel=1e-12)


def test_a_small_type_of_labels_is_not_mistaken():
    """As an unsigned byte, -100 is 156."""
    rows, labels = batch()
    shifted = (labels + 154).to(torch.uint8)
    assert torch.equal(angular_margin_loss(rows, shifted), angular_margin_loss(rows, labels))


@pytest.mark.parametrize("name", [name for name in FIRST_LOSSES if name != "cross_entropy"])
def test_robust_losses_hide_nothing_and_ignore_like_cross_entropy(name):
    logits, labels = batch(d=5)
    whole = FIRST_LOSSES[name](logits, labels)
    longer = torch.cat([logits, torch.full((3, 5), math.nan)])
    assert FIRST_LOSSES[name](longer, torch.cat([labels, torch.full((3,), IGNORED)])).item() == pytest.approx(whole.item(), rel=1e-12)
    logits[7, 2] = math.nan
    assert FIRST_LOSSES[name](logits, labels).isnan()
    with pytest.raises(Exception, match="index|bounds"):
        FIRST_LOSSES[name](logits, labels - 1)  # -1 is not the label that is ignored


# Shapes

VIEWS = r"embedding must be of shape \(B, D\), one row for each label, got \(8, 2, 16\); if the second axis holds views, make each view a row: " \
    r"embedding.flatten\(0, 1\) with labels.repeat_interleave\(2\)"


@pytest.mark.parametrize(("shape", "message"), [
    ((8, 2, 16), VIEWS),
    ((8, 16, 1), r"got \(8, 16, 1\)"),
    ((8, 16, 5, 3), r"got \(8, 16, 5, 3\); pool over all axes but the first two: embedding.amax\(\(2, 3\)\)"),
    ((8, 16, 1, 3), r"embedding.amax\(\(2, 3\)\)"),
    ((8, 2, 16, 1, 1), r"embedding.amax\(\(2, 3, 4\)\)"),
    ((8,), r"must be a floating point tensor of shape \(B, D\)"),
    ((8, 0), r"must be a floating point tensor of shape \(B, D\)"),
])
def test_shapes_that_are_not_in_the_docstring_are_refused(shape, message):
    labels = torch.arange(8) % 3
    with pytest.raises(ValueError, match=message):
        angular_margin_loss(torch.randn(shape), labels)
    with pytest.raises(ValueError, match=message.replace("embedding", "z")):
        info_nce(torch.randn(shape), labels)


@pytest.mark.parametrize("rows", [torch.ones(5, 5, 5), torch.ones(5, 4, 3), torch.ones(5), torch.ones(5, 0), torch.ones(5, 3, dtype=torch.int32),
                                  torch.ones(5, 3, dtype=torch.complex64)], ids=lambda rows: f"{rows.dtype} {tuple(rows.shape)}")
def test_angles_are_of_rows_only(rows):
    for call in (unit_vectors, pairwise_angles, partial(pairwise_angles, torch.ones(2, 3))):
        with pytest.raises(ValueError, match=r"embedding must be a floating point tensor of shape \(B, D\), got"):
            call(rows)


def test_labels_are_whole_numbers():
    rows, labels = batch()
    for kind in (torch.float32, torch.complex64):
        with pytest.raises(ValueError, match="labels must be 16 integers"):
            angular_margin_loss(rows, labels.to(kind))


@pytest.mark.parametrize("size", [1e-30, 1e-15, 1e20, 1e35])
def test_an_embedding_of_any_size_is_evaluated_by_its_direction(size):
    """The loss does not see the size, so that nothing keeps it from growing."""
    rows, labels = batch(n=20)
    rows = rows.float()
    patches = Patches(rows, torch.arange(20), labels, torch.arange(20), 1)
    ordinary, scaled = (clip_outputs(torch.zeros(20, 5), z, patches).embeddings for z in (rows, rows * size))
    assert torch.allclose(scaled, ordinary, atol=1e-6) and ordinary.norm(dim=1).min() > 0.99
    votes = [neighbour_votes(z, patches, n_neighbours=3, n_classes=5) for z in (rows, rows * size)]
    assert torch.equal(*votes)


def test_no_class_is_named_where_there_are_no_probabilities():
    rows, labels = batch(n=20)
    patches = Patches(rows.float(), torch.arange(20), labels, torch.arange(20), 1)
    logits = torch.zeros(20, 5)
    logits[3, 2] = math.nan
    with pytest.raises(ValueError, match="not numbers for 1 clips: 3.wav"):
        prediction_table(clip_outputs(logits, rows.float(), patches), pd.Series([f"{i}.wav" for i in range(20)]), list("abcde"))


def test_what_the_message_says_works():
    rows, labels = torch.randn(8, 2, 16), torch.arange(8) % 3
    as_rows = angular_margin_loss(rows.flatten(0, 1), labels.repeat_interleave(2))
    assert torch.equal(as_rows, angular_margin_loss(torch.stack([view for clip in rows for view in clip]), torch.tensor([y for y in labels for _ in range(2)])))
    maps = torch.randn(8, 16, 5, 3)
    assert torch.equal(angular_margin_loss(maps.amax((2, 3)), labels), angular_margin_loss(maps.amax((2, 3))[..., None, None], labels))


def test_settings_that_cannot_be():
    rows, labels = batch()
    for call in (lambda: info_nce(rows, labels, temperature=math.nan), lambda: InfoNCE(math.nan), lambda: InfoNCE(math.inf)):
        with pytest.raises(ValueError, match="temperature must be a number above 0, between 1e-12 and 1e12, got"):
            call()
    for constant in (0, -50, math.nan, math.inf):
        with pytest.raises(ValueError, match="constant must be a number above 0"):
            AngularContrastiveLoss(constant=constant)


NO_NUMBERS = [True, "0.5", None, math.nan, 1j, [0.5], Decimal("0.5"), torch.tensor([0.5, 0.5]), np.array([0.5]), 10**400, -10**400]
SETTINGS = {
    "temperature": (info_nce, [*NO_NUMBERS, 0, -1, 1e-39, 5e-324, 1e39, math.inf]),
    "margin_rad": (angular_margin_loss, [*NO_NUMBERS, -1e-300, 3.15]),
    "constant": (angular_margin_loss, [*NO_NUMBERS, 0, 1e-39, 1e300]),
    "ignore_index": (angular_margin_loss, [*NO_NUMBERS, 1.0, 2**63]),
    "reduction": (angular_margin_loss, [None, ["mean"], np.array(["mean", "sum"])]),
    "q": (FIRST_LOSSES["lq"], [*NO_NUMBERS, 0, 5e-324, 1e-39, 1.01]),
    "beta": (FIRST_LOSSES["soft_bootstrapping"], [*NO_NUMBERS, -0.1, 1.01]),
    "fraction": (FIRST_LOSSES["discard_maximum"], [*NO_NUMBERS, 0, 1.01]),
    "spread": (FIRST_LOSSES["discard_outlier"], [*NO_NUMBERS, -0.1, math.inf]),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_is_a_number_that_float32_bears_or_is_refused_by_name(name):
    """At the ends of its range the loss and its gradients are finite."""
    loss, wrong = SETTINGS[name]
    rows, labels = batch(d=5)
    for value in wrong:
        with pytest.raises(ValueError, match=f"^{name} must be"):
            loss(rows, labels, **{name: value})
    ends = {"temperature": (1e-12, 1e12), "margin_rad": (0, math.pi), "constant": (1e-12, 1e12), "ignore_index": (-2**63, np.int64(3)), "reduction": ("sum", "none"),
            "q": (1e-12, 1), "beta": (5e-324, Fraction(1, 3)), "fraction": (1e-12, 1), "spread": (5e-324, 1e12)}[name]
    for value in ends:
        value, gradient = with_gradient(lambda x, y: loss(x, y, **{name: value}).sum(), rows.float(), labels)
        assert value.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("loss", [angular_margin_loss, info_nce, AngularContrastiveLoss(0.5), *(FIRST_LOSSES[name] for name in FIRST_LOSSES if name != "cross_entropy")])
def test_what_is_no_batch_is_refused_by_name(loss):
    """Another layout, another device, labels that are none: an error of ours, not one of a kernel."""
    rows, labels = batch(d=5)
    rows = rows.float()
    call = (lambda x, y: loss(x, y, x)) if isinstance(loss, AngularContrastiveLoss) else loss
    for wrong in (rows.to_sparse(), rows.to_sparse_csr(), rows.to_mkldnn(), rows.tolist(), rows.numpy(), None):
        with pytest.raises(TypeError, match="^(embedding|z|logits) must be a (dense )?tensor, got"):
            call(wrong, labels)
    for wrong in (labels.to("meta"), labels.float(), labels[:5], labels[:, None], labels[0], labels.to(torch.complex64)):
        with pytest.raises(ValueError, match="^labels must be"):
            call(rows, wrong)
    for kind in (torch.int8, torch.int32, torch.uint8, torch.uint64):
        assert torch.equal(call(rows, labels.to(kind)), call(rows, labels))


def test_robust_losses_refuse_what_is_no_mark_of_noise_and_an_empty_batch():
    rows, labels = batch(d=5)
    for loss in (FIRST_LOSSES[name] for name in FIRST_LOSSES if name != "cross_entropy"):
        for wrong in ([True] * 16, labels, labels[:3] > 2, (labels > 2).to("meta")):
            with pytest.raises((TypeError, ValueError), match="^noisy must be"):
                loss(rows, labels, noisy=wrong)
        with pytest.raises(ValueError, match=r"^logits must be .* got torch.float64 of shape \(0, 5\)"):
            loss(rows[:0], labels[:0])


@pytest.mark.parametrize("name", ["views", "gather"])
def test_a_switch_is_true_or_false(name):
    with pytest.raises(ValueError, match=f"{name} must be True or False, got 'no'"):
        AngularContrastiveLoss(**{name: "no"})


# Any device, any global state

def test_on_a_device_without_autocast():
    """`meta` has shapes only: anything that reads a value back fails there."""
    rows, labels, logits = torch.empty(8, 16, device="meta"), torch.empty(8, dtype=torch.long, device="meta"), torch.empty(8, 5, device="meta")
    for first_loss in (*FIRST_LOSSES.values(), InfoNCE()):
        rows, logits = rows.detach().requires_grad_(), logits.detach().requires_grad_()
        AngularContrastiveLoss(0.5, first_loss=first_loss)(rows, labels, logits).backward()
        assert rows.grad.shape == rows.shape and logits.grad.shape == logits.shape


@every_loss
def test_in_a_region_of_autocast(loss):
    rows, labels = batch()
    expected = loss(rows.float(), labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(rows.float(), labels), expected)


@every_loss
@every_dtype
def test_another_default_dtype_changes_nothing(loss, dtype):
    rows, labels = batch()
    expected = with_gradient(loss, rows.to(dtype), labels)
    torch.set_default_dtype(torch.float64)
    try:
        found = with_gradient(loss, rows.to(dtype), labels)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, found, expected)) and found[0].dtype == expected[0].dtype


def test_nothing_of_the_callers_is_changed():
    rows, labels = batch()
    rows[2] = 0
    labels[3] = IGNORED
    before = rows.clone(), labels.clone()
    info_nce(rows, labels), angular_margin_loss(rows, labels), unit_vectors(rows)
    assert torch.equal(rows, before[0]) and torch.equal(labels, before[1])
