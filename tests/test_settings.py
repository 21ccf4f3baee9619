"""Settings are of the types that their dataclasses name, from the moment they are made: no value of another type gets in, and each that is refused is named."""
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acl_paper.augment import AugmentConfig
from acl_paper.console import DatasetError
from acl_paper.evaluation import choose_device
from acl_paper.inference import hop_frames
from acl_paper.log_mel import FeatureConfig
from acl_paper.mini import MiniConfig, acl_mini
from acl_paper.patches import SplitConfig
from acl_paper.pretraining import PretrainConfig, ViewLossConfig
from acl_paper.probing import ProbeConfig
from acl_paper.quick_probe import acl_probe
from acl_paper.training import TrainConfig

SETTINGS = (FeatureConfig, MiniConfig, SplitConfig, TrainConfig, ViewLossConfig, PretrainConfig, AugmentConfig, ProbeConfig)
RIGHT = {  # values of a type, whether in the range of the setting or not
    bool: lambda value: isinstance(value, bool),
    int: lambda value: type(value) is int,
    float: lambda value: type(value) in (int, float),
    float | None: lambda value: value is None or type(value) in (int, float),
    str: lambda value: isinstance(value, str),
    dict: lambda value: isinstance(value, dict),
}
ANY = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=3), st.complex_numbers(),
                st.lists(st.floats(), max_size=3), st.dictionaries(st.text(max_size=2), st.integers(), max_size=2))
FIELDS = [(kind, field) for kind in SETTINGS for field in dataclasses.fields(kind) if field.type in RIGHT]


def test_the_settings_that_are_tried():
    assert len(FIELDS) > 90
    assert {field.type for _, field in FIELDS} == set(RIGHT)


@pytest.mark.parametrize("kind", SETTINGS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_setting_is_of_its_type_or_refused_by_name(kind, data):
    """An error that is not a ValueError fails the test, too."""
    field = data.draw(st.sampled_from([field for _, field in FIELDS if _ is kind]))
    value = data.draw(ANY)
    try:
        made = kind(**{field.name: value})
    except ValueError as error:
        told = str(error)
        assert field.name in told or f"{field.name.replace('_', ' ')}" in told or kind is MiniConfig, told
    else:
        kept = getattr(made, field.name)
        assert RIGHT[field.type](kept) and json.loads(json.dumps(kept)) == kept


@pytest.mark.parametrize("kind, wrong, told", [
    (FeatureConfig, {"n_mels": "96"}, "n_mels must be a whole number, got '96'"),
    (FeatureConfig, {"sample_rate": 44_100.0}, "sample_rate must be a whole number, got 44100.0"),
    (FeatureConfig, {"log_offset": None}, "log_offset must be a finite number, got None"),
    (FeatureConfig, {"fmin_hz": float("nan")}, "fmin_hz must be a finite number, got nan"),
    (FeatureConfig, {"window": 5}, "window must be a text, got 5"),
    (FeatureConfig, {"hop_length": 0}, "hop_length must be a whole number from 1, got 0"),
    (MiniConfig, {"seed": "1"}, "seed must be a whole number, got '1'"),
    (MiniConfig, {"share_mixed": True}, "share_mixed must be a finite number, got True"),
    (AugmentConfig, {"n_masks": 1.5}, "n_masks must be a whole number, got 1.5"),
    (AugmentConfig, {"crop_scale": (0.5, 0.7, 1)}, "crop_scale must be two finite numbers, got (0.5, 0.7, 1)"),
    (ViewLossConfig, {"temperature": "0.2"}, "temperature must be a finite number, got '0.2'"),
    (ViewLossConfig, {"temperature": np.float32(0.2)}, "temperature must be a finite number, got np.float32(0.2)"),  # JSON does not take it
    (PretrainConfig, {"temperature": 1e-39}, "temperature must be a number above 0, between 1e-12 and 1e12, got 1e-39"),
    (TrainConfig, {"seed": 2**70}, "seed must be a whole number up to 4,294,967,295, got 1180591620717411303424"),
    (TrainConfig, {"patch_frames": 10**9}, "patch_frames must be a whole number up to 10,000, got 1000000000"),
    (TrainConfig, {"split_seed": -1}, "split_seed must be a whole number from 0, got -1"),
    (PretrainConfig, {"augment": "none"}, "augment must be of the type AugmentConfig, got 'none'"),
    (ProbeConfig, {"seed": None}, "seed must be a whole number, got None"),
    (TrainConfig, {"epochs": 1.5}, "epochs must be a whole number from 1, got 1.5"),
])
def test_the_setting_the_type_and_the_value_are_named(kind, wrong, told):
    with pytest.raises(ValueError) as raised:
        kind(**wrong)
    assert told in str(raised.value)


@pytest.mark.parametrize("call, told", [
    (lambda: acl_probe("nowhere", jobs=-1), "--folds must be from 2 and --jobs from 1, not 5 and -1"),
    (lambda: acl_probe("nowhere", folds=0), "--folds must be from 2 and --jobs from 1, not 0 and None"),
    (lambda: acl_mini("nowhere", n_jobs=-5), "--n_jobs must be 0 or more, not -5"),
    (lambda: choose_device("abacus"), 'device "abacus" is none that torch knows'),
    (lambda: hop_frames(SimpleNamespace(features=FeatureConfig(), patch_frames=100), float("nan")), "the hop must lie between 0.02 s and the 2 s of a patch, not be nan"),
])
def test_a_command_refuses_what_cannot_be_before_it_works(call, told):
    """As a `DatasetError`, which a command ends with in one line."""
    with pytest.raises(DatasetError) as raised:
        call()
    assert told in str(raised.value) and "\n" not in str(raised.value)
