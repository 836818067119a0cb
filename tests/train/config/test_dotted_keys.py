"""Dotted keys: complete, and described in words."""

import pytest

from train.classify.config import Config
from train.config import dotted_keys


def test_keys_use_the_names_of_the_file():
    assert {
        "model",
        "data.train",
        "lora.r",
        "lora.from",
        "train.learning_rate",
        "hub.push",
        "offline",
    } <= set(dotted_keys.fields(Config))
    assert "lora.from_" not in dotted_keys.fields(Config)
    assert not set(dotted_keys.sections(Config)) & set(dotted_keys.fields(Config))


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("lora.r", "whole number >= 1 and <= 65536"),
        ("lora.lora_alpha", "number > 0"),
        ("lora.lora_dropout", "number >= 0 and < 1"),
        ("lora.target_modules", "text, list of text or null"),
        ("lora.init_lora_weights", "true or false or text"),
        ("lora.rank_pattern", "mapping {text: whole number >= 1 and <= 65536}"),
        ("train.schedule", "linear, cosine or constant"),
        ("train.max_steps", "whole number >= 1 or null"),
    ],
)
def test_types_in_words(key, words):
    assert dotted_keys.describe_field(dotted_keys.fields(Config)[key]) == words
