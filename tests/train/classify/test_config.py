"""The classifiers' schema: what it takes and what it refuses."""

import pytest
from pydantic import ValidationError

from tests.support.training.config_cases import assert_checked, config
from train.classify.config import Config
from train.config import dotted_keys


@pytest.mark.parametrize(
    ("section", "key", "good", "bad"),
    [
        ("data", "label_names", ["a"], [1]),
        ("data", "test_fraction", 0.5, 1),
    ],
)
def test_values_are_checked(section, key, good, bad):
    assert_checked(Config, section, key, good, bad)


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"method": "head", "train": {"learning_rate": {"lora": 1e-3}}}, "train.learning_rate.head: missing"),
        ({"method": "full", "lora": {"from": "a"}}, "lora.from: expected null"),
        ({"hub": {"push": True}}, "hub.repo: missing"),
        ({"lora": {"init_lora_weights": "eva"}}, "lora.init_lora_weights: .*jlora.init_eva"),
        ({"lora": {"init_lora_weights": "lora_ga"}}, "lora.init_lora_weights: .*jlora.init_lora_ga"),
        (
            {"data": {"train": "t", "drop_other_labels": True, "label_names": ["a"]}},
            "data.drop_other_labels: ",
        ),
        (
            {"task": "regression", "data": {"train": "t", "label_names": ["a"]}},
            "data.label_names: expected null",
        ),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(sections, key):
    with pytest.raises(ValidationError, match=key):
        config(**sections)


def test_every_key_has_a_meaning():
    assert all(field.description for field in dotted_keys.fields(Config).values())
