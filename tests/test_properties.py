"""What holds whatever the input is: hypothesis tries many inputs, and then looks for the smallest that breaks it.

How many are tried, and from which seed on, is said in chance.py.
"""
import csv
import dataclasses
import json
import tempfile
import warnings
from pathlib import Path

import hypothesis
import numpy as np
import pandas as pd
import pytest
import torch
from chance import SEED, rounds
from hypothesis import strategies as st

from acl_paper.console import DatasetError
from acl_paper.data import class_names, load_clips, table_fingerprint
from acl_paper.evaluation import ClipOutputs, all_accuracies, class_probabilities, prediction_table, wilson
from acl_paper.features import FeatureConfig
from acl_paper.fingerprints import fingerprint_of
from acl_paper.losses import AngularContrastiveLoss, angular_margin_loss, info_nce
from acl_paper.patches import test_patch_starts as starts_of_test_patches
from acl_paper.patches import training_patch_starts
from acl_paper.runs import load_predictions, predictions_csv
from acl_paper.text import as_seen, one_spelling

LOSSES = [angular_margin_loss, info_nce]


def holds(what, n, **strategies):
    """Make a test of a function: what it asserts must hold for `n` inputs in an ordinary run."""
    def decorate(asserts):
        def test(tried):
            n_right = 0

            @hypothesis.seed(SEED)
            @hypothesis.settings(max_examples=rounds(n), deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck))
            @hypothesis.given(**strategies)
            def one(**values):
                nonlocal n_right
                asserts(**values)
                n_right += 1

            try:
                one()
            except BaseException:
                tried(what, right=n_right, wrong=1)
                raise
            tried(what, right=n_right)

        test.__doc__ = asserts.__doc__
        return test

    return decorate


# Losses

@st.composite
def batches(draw, values=st.floats(-100, 100, width=32), least=2):
    """Embeddings (B, D) in float32 and labels (B,)."""
    n, d = draw(st.integers(least, 12)), draw(st.integers(1, 6))
    rows = draw(st.lists(st.lists(values, min_size=d, max_size=d), min_size=n, max_size=n))
    labels = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    return torch.tensor(rows), torch.tensor(labels)


@holds("losses of permuted batches", 100, batch=batches(), loss=st.sampled_from(LOSSES), dice=st.randoms(use_true_random=False))
def test_the_order_of_a_batch(batch, loss, dice):
    """A loss does not depend on the order of its batch."""
    rows, labels = batch
    order = list(range(len(labels)))
    dice.shuffle(order)
    torch.testing.assert_close(loss(rows[order].double(), labels[order]), loss(rows.double(), labels))


@holds("losses of scaled embeddings", 100, batch=batches(), loss=st.sampled_from(LOSSES), data=st.data())
def test_the_length_of_an_embedding(batch, loss, data):
    """A loss does not depend on the lengths of its embeddings."""
    rows, labels = batch
    factors = data.draw(st.lists(st.floats(1e-3, 1e3), min_size=len(labels), max_size=len(labels)))
    scaled = rows.double() * torch.tensor(factors, dtype=torch.float64)[:, None]
    torch.testing.assert_close(loss(scaled, labels), loss(rows.double(), labels), rtol=1e-5, atol=1e-6)


@holds("gradients", 200, batch=batches(st.floats(width=32, allow_nan=False, allow_infinity=False), least=1), loss=st.sampled_from(LOSSES),
       dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
def test_gradients(batch, loss, dtype):
    """Any finite embeddings, of any length and type, have a finite loss and finite gradients."""
    rows, labels = batch
    rows = torch.nan_to_num(rows.to(dtype)).requires_grad_()  # what float16 cannot hold: its largest number
    value = loss(rows, labels)
    value.backward()
    assert value.isfinite() and value >= 0 and rows.grad.isfinite().all()


@holds("values of alpha", 100, batch=batches(), alpha=st.floats(0, 1), data=st.data())
def test_alpha(batch, alpha, data):
    """The angular contrastive loss is linear in alpha, between its two terms."""
    rows, labels = batch
    n = len(labels)
    logits = torch.tensor(data.draw(st.lists(st.lists(st.floats(-20, 20, width=32), min_size=4, max_size=4), min_size=n, max_size=n)))
    total, first, angular = AngularContrastiveLoss(alpha).terms(rows, labels, logits)
    assert min(first, angular) - 1e-5 <= total <= max(first, angular) + 1e-5 * (1 + max(first, angular))
    torch.testing.assert_close(total, alpha * AngularContrastiveLoss(1.0)(rows, labels, logits) + (1 - alpha) * AngularContrastiveLoss(0.0)(rows, labels, logits))


# Patches

@holds("patches", 300, n_frames=st.integers(1, 3000), patch=st.integers(1, 300), hop=st.integers(1, 300), complete=st.booleans())
def test_patches(n_frames, patch, hop, complete):
    """All patches lie within their clip; every frame is in a training patch, but for fewer than a hop at its end."""
    hypothesis.assume(patch <= n_frames)
    starts = training_patch_starts(n_frames, patch, patch_hop=hop, complete=complete)
    assert starts[0] == 0 and starts[-1] + patch <= n_frames and (np.diff(starts) == hop).all()
    left_over = n_frames - (starts[-1] + patch)
    assert left_over < hop if complete else left_over <= hop  # the released code drops a last patch that fits exactly
    if hop <= patch:
        covered = {frame for start in starts for frame in range(start, start + patch)}
        assert covered == set(range(n_frames - left_over))
    for_test = starts_of_test_patches(n_frames, patch)
    assert for_test[0] == 0 and (np.diff(for_test) == patch).all() and 0 <= n_frames - (for_test[-1] + patch) < patch


# Evaluation

@st.composite
def predictions(draw, names=st.text(st.characters(codec="utf-8"), max_size=8)):
    """A table of predictions and its classes."""
    classes = sorted(draw(st.sets(names.map(str.strip).filter(bool), min_size=1, max_size=5)))
    n = draw(st.integers(1, 12))
    scores = draw(st.lists(st.lists(st.floats(1e-3, 1), min_size=len(classes), max_size=len(classes)), min_size=n, max_size=n))
    n_patches = torch.tensor(draw(st.lists(st.integers(1, 9), min_size=n, max_size=n)))
    labels = torch.tensor(draw(st.lists(st.integers(0, len(classes) - 1), min_size=n, max_size=n)))
    outputs = ClipOutputs(torch.arange(n), labels, torch.tensor(scores) * n_patches[:, None], n_patches, torch.zeros(n, 2))
    return prediction_table(outputs, pd.Series([f"{i}.wav" for i in range(n)]), classes), classes


@holds("accuracies", 100, made=predictions(), dice=st.randoms(use_true_random=False))
def test_accuracies(made, dice):
    """Accuracies lie from 0 to 1, within their intervals, and do not depend on the order of the clips."""
    table, _ = made
    found = all_accuracies(table)
    assert all(0 <= found[name] <= 1 for name in ("accuracy", "macro_accuracy", "patch_weighted_micro_accuracy"))
    assert 0 <= found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"] <= 1
    order = list(range(len(table)))
    dice.shuffle(order)
    assert all_accuracies(table.iloc[order]) == pytest.approx(found, abs=1e-12)


@holds("Wilson intervals", 300, clips=st.integers(1, 10**6), share=st.floats(0, 1), confidence=st.floats(0.01, 0.999))
def test_wilson(clips, share, confidence):
    """A Wilson interval holds the share it is of, lies within 0 and 1, and grows with its confidence."""
    found, wider = (wilson(round(share * clips), clips, confidence=c) for c in (confidence, (1 + confidence) / 2))
    assert 0 <= wider.low <= found.low <= found.value <= found.high <= wider.high <= 1


# Text

ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(["None", "NA", "null", "nan", "truth", "prediction", "fname", "n_patches", "1e5", "True", '"', "'", ",", "a\nb", "a\rb", "#", "=1+1"])


@holds("tables of predictions", 200, made=predictions(ANY_TEXT))
def test_predictions_come_back(made):
    """A table of predictions is read with the class names, of any text, that it was written with."""
    table, classes = made
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "predictions.csv").write_bytes(predictions_csv(table).encode())
        back = load_predictions(folder)
    assert back[["fname", "truth", "prediction", "n_patches"]].equals(table[["fname", "truth", "prediction", "n_patches"]].astype(back.dtypes[:4].to_dict()))
    assert list(class_probabilities(back).columns) == classes
    np.testing.assert_allclose(class_probabilities(back), class_probabilities(table), rtol=1e-5)


@holds("tables of clips with any labels", 200, labels=st.lists(ANY_TEXT, min_size=2, max_size=8))
def test_labels_come_back(labels):
    """A clips.csv gives back its labels, of any text, without the blanks around them; or it is refused by name."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open(Path(folder, "clips.csv"), "w", newline="", encoding="utf-8") as file:
            rows = [[f"{i}.wav", label, "train"] for i, label in enumerate(labels)]
            csv.writer(file).writerows([["path", "label", "split"], *rows, ["test.wav", labels[0], "test"]])
        try:
            clips = load_clips(folder)
        except DatasetError as error:
            alike = len({*map(as_seen, labels)}) < len({one_spelling(visible(label)) for label in labels})
            assert folder in str(error) and (alike or any("\0" in label or not as_seen(label) for label in labels))
            return
    expected = [one_spelling(visible(label)) for label in [*labels, labels[0]]]
    assert clips.label.tolist() == expected and [class_names(clips)[i] for i in clips.label_id] == expected


def visible(label):
    """A label without what cannot be seen at its ends."""
    while label and (label[0].isspace() or label[0] in INVISIBLE):
        label = label[1:]
    return visible(label[::-1])[::-1] if label and (label[-1].isspace() or label[-1] in INVISIBLE) else label


INVISIBLE = "\u00ad\u061c\u180e\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\ufeff" + "".join(map(chr, range(0x2060, 0x2070)))


# Fingerprints

FIELDS = {field.name: field for field in dataclasses.fields(FeatureConfig)}


@holds("settings of features", 200, name=st.sampled_from(sorted(FIELDS)), number=st.integers(1, 10**6))
def test_feature_settings(name, number):
    """Every setting of the features is part of their digest, which is the same when they have been written down."""
    usual = FeatureConfig()
    value = f"kaiser {number}" if name == "window" else type(getattr(usual, name))(number)
    hypothesis.assume(value != getattr(usual, name))
    try: changed = dataclasses.replace(usual, **{name: value})
    except ValueError: return  # refused, as a window longer than the transform is
    assert changed.digest != usual.digest
    assert FeatureConfig(**json.loads(json.dumps(dataclasses.asdict(changed)))).digest == changed.digest


def clips_of(names, labels):
    split = ["test" if i == 0 else "train" for i in range(len(names))]
    return pd.DataFrame({"path": names, "fname": names, "label": labels, "split": split})


@holds("fingerprints", 200, names=st.lists(ANY_TEXT.filter(bool), min_size=2, max_size=6, unique_by=one_spelling), data=st.data())
def test_fingerprints(names, data):
    """The fingerprints of audio and table change with any content, name or label, and with nothing else."""
    n = len(names)
    contents = data.draw(st.lists(st.from_regex(r"\d{1,6}-[0-9a-f]{8}", fullmatch=True), min_size=n, max_size=n))
    labels = data.draw(st.lists(st.sampled_from("abc"), min_size=n, max_size=n))
    at, clips = data.draw(st.integers(0, n - 1)), clips_of(names, labels)
    source, table = fingerprint_of(clips, contents), table_fingerprint(clips)
    assert (source, table) == (fingerprint_of(clips.assign(licence="CC0"), list(contents)), table_fingerprint(clips.assign(licence="CC0")))
    other = [*contents[:at], contents[at] + "0", *contents[at + 1:]]
    assert fingerprint_of(clips, other) != source
    relabelled = clips_of(names, [*labels[:at], labels[at] + "x", *labels[at + 1:]])
    assert table_fingerprint(relabelled) != table and fingerprint_of(relabelled, contents) == source
    renamed = clips_of([*names[:at], names[at] + "x", *names[at + 1:]], labels)
    assert table_fingerprint(renamed) != table and fingerprint_of(renamed, contents) != source
