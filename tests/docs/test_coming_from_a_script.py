"""The table for people who come from a script: all its options, our keys, and defaults that are the schema's."""

import re
from pathlib import Path

import pytest

from jlora.files import yaml12
from train.config import dotted_keys
from train.lm.config import LMConfig

PAGE = Path(__file__).parents[2] / "docs" / "coming-from-a-script.md"
ROWS = [line.strip("|").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| `")]
OPTIONS = {
    "base_model": "required", "tokenizer_name": "none", "lora_r": "8", "lora_alpha": "16", "lora_dropout": "0.05",
    "target_modules": "none", "dataset_name": "none", "dataset_config_name": "none", "train_file": "none",
    "validation_file": "none", "text_column": "text", "max_seq_length": "512", "output_dir": "required",
    "num_train_epochs": "3", "per_device_train_batch_size": "8", "per_device_eval_batch_size": "8",
    "gradient_accumulation_steps": "1", "learning_rate": "3e-4", "weight_decay": "0", "warmup_ratio": "0.03",
    "logging_steps": "10", "eval_steps": "100", "save_steps": "1000", "save_total_limit": "3", "seed": "42",
    "push_to_hub": "false", "hub_model_id": "none", "use_8bit": "false", "use_4bit": "false", "use_wandb": "false",
    "wandb_project": "none",
}  # fmt: skip
"""The usual script's, with its defaults; the three *_steps are one row."""


def test_every_option_of_the_script_has_its_row():
    assert len(ROWS) == 29
    told = {}
    for options, there, *_ in ROWS:
        names, defaults = re.findall(r"`(\w+)`", options), there.strip().split(", ")
        told |= dict(zip(names, defaults, strict=True))
    assert told == OPTIONS


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip())
def test_every_key_is_in_the_schema_with_that_default(row):
    known, named = dotted_keys.fields(LMConfig), re.findall(r"`([\w.]+)` ([^,]+)", row[2])
    assert named
    for key, shown in named:
        field = known[key]
        if shown.strip() == "required":
            assert field.is_required(), key
        else:
            assert yaml12.parse(shown.strip(), key) == field.default, key


def test_where_the_defaults_differ_a_reason_is_given():
    for options, there, here, why in ROWS:
        shown = [value.strip() for _, value in re.findall(r"`([\w.]+)` ([^,]+)", here)]
        same = [yaml12.parse(a, "") for a in there.strip().split(", ")] == [yaml12.parse(a, "") for a in shown]
        nothing = there.strip() in ("none", "false") and shown[0] in ("null", "none", "false")
        assert same or nothing or why.strip(), options
