"""A misspelt key gets the key that was meant."""

import pytest

from train.classify.config import Config
from train.config import dotted_keys
from train.config.unknown_key import explain_unknown_key
from train.lm.config import LMConfig

KEYS = [
    pytest.param(schema, key, id=f"{schema.__name__}-{key}")
    for schema in (Config, LMConfig)
    for key in dotted_keys.fields(schema)
    if len(key.rpartition(".")[2]) > 3 and not key[-1].isdigit()
]


@pytest.mark.parametrize(("schema", "key"), KEYS)
def test_a_key_with_one_letter_missing_is_found_again(schema, key):
    suggested = explain_unknown_key(key[:-1], schema).partition("did you mean ")[2].rstrip("?")
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
    assert explain_unknown_key(key, Config) == f"unknown key; did you mean {suggested}?"


def test_where_nothing_is_near_the_keys_of_the_section_are_listed():
    assert explain_unknown_key("hub.train", Config).startswith("unknown key; did you mean data.train?")
    assert explain_unknown_key("hub.trian", Config).startswith("unknown key; known: hub.push")
    assert explain_unknown_key("hub.zzzzzz", Config) == "unknown key; known: hub.push, hub.repo, hub.private"
    assert "model, method" in explain_unknown_key("zzzzzz", Config)


def test_keys_of_the_other_command_are_unknown():
    assert "quantize" in dotted_keys.fields(LMConfig)
    assert explain_unknown_key("quantize", Config).startswith("unknown key; known: model, method, output_dir")
    assert explain_unknown_key("data.label_names", LMConfig).startswith("unknown key; ")
