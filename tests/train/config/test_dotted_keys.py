"""Dotted keys: complete, described in words, and suggested for misspelt ones."""

import pytest

from train.classify.config import Config
from train.config import dotted_keys
from train.lm.config import LMConfig


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


KEYS = [
    pytest.param(schema, key, id=f"{schema.__name__}-{key}")
    for schema in (Config, LMConfig)
    for key in dotted_keys.fields(schema)
    if len(key.rpartition(".")[2]) > 3 and not key[-1].isdigit()
]


@pytest.mark.parametrize(("schema", "key"), KEYS)
def test_a_key_with_one_letter_missing_is_found_again(schema, key):
    suggested = dotted_keys.unknown(key[:-1], schema).partition("did you mean ")[2].rstrip("?")
    assert suggested == key


@pytest.mark.parametrize(
    ("key", "suggested"),
    [
        ("learning_rate", "train.learning_rate"),
        ("r", "lora.r"),
        ("lora.alpha", "lora.lora_alpha"),
        ("lora.rank", "lora.r or lora.rank_pattern"),
        ("lora.dropout", "lora.lora_dropout"),
        ("train.lr", "train.learning_rate"),
        ("train.warmup", "train.warmup_ratio or train.warmup_steps"),
        ("train.max_length", "data.max_length"),
        ("data.dtype", "train.dtype"),
    ],
)
def test_a_key_in_the_wrong_section_is_found(key, suggested):
    assert dotted_keys.unknown(key, Config) == f"unknown key; did you mean {suggested}?"


def test_where_nothing_is_near_the_keys_of_the_section_are_listed():
    assert dotted_keys.unknown("hub.train", Config).startswith("unknown key; did you mean data.train?")
    assert dotted_keys.unknown("hub.trian", Config).startswith("unknown key; known: hub.push")
    assert dotted_keys.unknown("hub.zzzzzz", Config) == "unknown key; known: hub.push, hub.repo, hub.private"
    assert "model, method" in dotted_keys.unknown("zzzzzz", Config)


def test_keys_of_the_other_command_are_unknown():
    assert "quantize" in dotted_keys.fields(LMConfig)
    assert dotted_keys.unknown("quantize", Config).startswith("unknown key; known: model, method, output_dir")
    assert dotted_keys.unknown("data.label_names", LMConfig).startswith("unknown key; ")
