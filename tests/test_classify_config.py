"""The classifiers' schema: what it takes and what it refuses."""

import pytest
from pydantic import ValidationError

from train import keys
from train.classify.config import Config

SMALLEST = {"model": "m", "output_dir": "o", "data": {"train": "t"}}


def config(**sections):
    return Config.model_validate({**SMALLEST, **sections})


@pytest.mark.parametrize(
    ("section", "key", "good", "bad"),
    [
        ("lora", "r", 1, 0),
        ("lora", "lora_dropout", 0, 1),
        ("lora", "lora_alpha", 0.5, 0),
        ("lora", "layers_to_transform", [0], [-1]),
        ("lora", "rank_pattern", {"a": 1}, {"a": 0}),
        ("lora", "init_lora_weights", "gaussian", "pisa"),
        ("lora", "init_lora_weights", "pissa_niter_4", "pissa_niter_"),
        ("lora", "init_lora_weights", "olora", 1),
        ("lora", "use_dora", True, "yes"),
        ("lora", "bias", "lora_only", "some"),
        ("lora", "trainable_token_indices", [3], [-1]),
        ("lora", "trainable_token_indices", {"word_embeddings": [3]}, 3),
        ("data", "max_rows", 1, 0),
        ("data", "validation_fraction", 0.5, 1),
        ("data", "label_names", ["a"], [1]),
        ("train", "epochs", 0.5, 0),
        ("train", "batch_size", 1, 1.0),
        ("train", "learning_rate", 1, 0),
        ("train", "learning_rate", 1e-3, float("nan")),
        ("train", "learning_rate", {"lora": 1e-3}, {"lora": 1e-3, "loar": 1e-3}),
        ("train", "max_grad_norm", 0, -1),
        ("train", "remat", True, 1),
        ("train", "warmup_ratio", 0, "0.1"),
        ("train", "dtype", "bfloat16", "float16"),
        ("train", "adam_beta2", 0.98, 1),
        ("export", "dtype", "float16", "int8"),
        ("hub", "private", False, "no"),
    ],
)
def test_values_are_checked(section, key, good, bad):
    base = SMALLEST.get(section, {})
    assert getattr(getattr(config(**{section: {**base, key: good}}), section), key) == good
    with pytest.raises(ValidationError, match=f"{section}.{key}"):
        config(**{section: {**base, key: bad}})


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
    assert all(field.description for field in keys.fields(Config).values())
