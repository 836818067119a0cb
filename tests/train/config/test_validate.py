"""Dotted keys to a Config, or to the problems with them."""

import pytest

from jlora.errors import JloraError
from jlora.files.yaml12 import parse
from train.classify.config import Config
from train.config import validate as validation
from train.config.run_config import to_yaml

SMALLEST = {"model": "m", "output_dir": "o", "data.train": "t"}


def flatten(values):
    return validation.flatten(values, Config)


def validate(flat):
    return validation.validate(flat, Config)


def test_flattening_and_validating_a_written_config_gives_it_back():
    config = Config.model_validate({"model": "m", "output_dir": "o", "data": {"train": "t", "label_names": {1: "a"}}})
    assert validate(flatten(parse(to_yaml(config), "test"))) == (config, {})


def test_flattening_descends_into_sections_only():
    values = {"model": "m", "lora": {"rank_pattern": {"a": 1}}, "train": None, "hub": 3, "x": {"y": 1}, 5: 6}
    flat = {"model": "m", "lora.rank_pattern": {"a": 1}, "hub": 3, "x": {"y": 1}, "5": 6}
    assert flatten(values) == flat
    with pytest.raises(JloraError, match=r"lora\.r: given twice"):
        flatten({"lora": {"r": 1}, "lora.r": 1})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "", "expected text; found empty text"),
        ("model", None, "expected text; found null"),
        ("lora.r", True, "expected whole number >= 1 and <= 65536; found true"),
        ("lora.r", "x" * 100, "expected whole number >= 1 and <= 65536; found the text '" + "x" * 56 + "..."),
        ("lora.target_modules", [1], "expected text, list of text or null; found the list [1]"),
        (
            "lora.rank_pattern",
            {"a": 0},
            "expected mapping {text: whole number >= 1 and <= 65536}; found the mapping {'a': 0}",
        ),
        (
            "train.dtype",
            "bfloat",
            "expected auto, float32 or bfloat16; found the text 'bfloat'; nearest: bfloat16, float32",
        ),
        ("train.epochs", float("inf"), "expected number > 0; found inf"),
        ("lora", 8, "expected a mapping of keys such as lora.r; found 8"),
        ("lora.rnak", 8, "unknown key; did you mean lora.r?"),
        ("hub.push", True, None),
    ],
)
def test_one_problem(key, value, message):
    config, problems = validate({**SMALLEST, key: value})
    assert config is None
    assert problems == {key: message} if message else {"hub.repo"} == set(problems)


def test_what_is_missing_is_said_with_its_meaning():
    config, problems = validate({})
    assert config is None
    assert set(problems) == {"model", "output_dir", "data.train"}
    assert problems["output_dir"] == "missing; expected text: the run folder itself"
