"""A key that is not there, or should not be, comes with the field of the configuration that is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jlora
from tests.support.adapters.small_adapter import load, save

WEIGHTS, CONFIG, PREFIX = "adapter_model.safetensors", "adapter_config.json", "base_model.model."
QUERY = f"{PREFIX}encoder.layers.0.query"


def _change(folder, drop=(), add=(), **fields):
    stored = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(stored | fields))
    tensors = {key: value for key, value in load_file(folder / WEIGHTS).items() if not key.startswith(tuple(drop))}
    save_file(tensors | {key: np.ones((2, 4), np.float32) for key in add}, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"target_modules": ["value"]},
            rf"{CONFIG}: target_modules \['value'\] does not match query, for which {WEIGHTS} has tensors"
            r" \(encoder\.layers\.\d\.query\.lora_\w\.weight, \.\.\.\)\. Take the configuration .*, or name them in",
        ),
        ({"target_modules": None}, r"target_modules null does not match query"),
        (
            {"layers_to_transform": [0], "layers_pattern": "h"},
            r"layers_pattern \['h'\] leaves out encoder\.layers\.0\.query, .*correct layers_pattern",
        ),
        (
            {"drop": [f"{PREFIX}encoder.layers.1"]},
            r"layers\.1\.query\.lora_A\.weight: .*, found no such key\. .* ends at layer 0\. Load the base that",
        ),
        ({"layers_to_transform": [0]}, r"layers_to_transform \[0\] leaves out encoder\.layers\.1\.query, for which"),
        (
            {"exclude_modules": ["layers.1.query"]},
            r"exclude_modules \['layers\.1\.query'\] leaves out query, for which",
        ),
        (
            {"drop": [f"{PREFIX}head"]},
            r"head\.\w+: .* modules_to_save in adapter_config\.json names head\. Save the adapt",
        ),
        ({"drop": [f"{PREFIX}head.bias"]}, r"Other tensors of head are there: the file is not whole"),
        ({"drop": [f"{QUERY}.lora_B"]}, r"although .*layers\.0\.query\.lora_A\.weight is there: the file is not whole"),
        ({"drop": [QUERY]}, r"found no such key\. target_modules in adapter_config\.json names its module"),
        ({"use_dora": True}, r"lora_magnitude_vector: .* although use_dora is true in adapter_config\.json"),
        (
            {"r": 3},
            r"lora_A\.weight: expected the rank 3, which adapter_config\.json gives it \(r = 3\), found 2\. Correct",
        ),
        ({"add": [f"{QUERY}.lora_magnitude_vector"]}, r"found, but use_dora is not true in adapter_config\.json"),
        (
            {"add": [f"{PREFIX}encoder.layers.2.query.lora_A.weight"]},
            r"the base has the layers 0 to 1: the adapter is of",
        ),
        (
            {"add": [f"{PREFIX}foo.bar"]},
            r"foo\.bar: found, but the base has no module foo, and it is no part of a LoRA",
        ),
        ({"add": [f"{PREFIX}mlp.experts.0.up.lora_A.weight"]}, r"adapters of stacked experts are not supported"),
    ],
)
def test_the_wrong_field_is_named(changes, message, tmp_path):
    _change(save(tmp_path), **changes)
    with pytest.raises(jlora.AdapterMismatchError, match=message):
        load(tmp_path)


def test_names_of_kohya_are_recognized(tmp_path):
    _change(save(tmp_path), drop=[f"{PREFIX}encoder"], add=["lora_unet_down.lora_up.weight"])
    with pytest.raises(
        jlora.AdapterMismatchError, match=r"kohya's scripts \(lora_unet_down\.lora_up\.weight\)\. Convert"
    ):
        load(tmp_path)
