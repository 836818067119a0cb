"""An adapter of another base is called that, before anything else about it is refused."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jlora
from jlora.peft.same_base import adapted_modules
from tests.support.adapters.lora_cases import normal
from tests.support.adapters.small_adapter import BASE, load, save

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
TOO_MUCH = {"trainable_token_indices": [7, 1000], "base_model_name_or_path": "org/larger"}
"""Fields that would be refused for the small base by themselves."""


def _with_fields(folder, **fields):
    stored = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(stored | fields))
    return folder


@pytest.mark.parametrize("fields", [{}, TOO_MUCH, {"modules_to_save": ["lm_head"]}])
def test_other_sizes(fields, tmp_path):
    _with_fields(save(tmp_path), **fields)
    larger = jax.tree.map(lambda leaf: np.zeros([2 * size if size == 4 else size for size in leaf.shape]), BASE)
    named = (
        "Its configuration names org/larger: load that one" if "base_model_name_or_path" in fields else "Load the base"
    )
    expected = (
        r"encoder\.layers\.0\.query: A and B are for a weight of 4 x 4, the base's is 8 x 8:"
        rf" the adapter is of another base\. {named}"
    )
    with pytest.raises(jlora.AdapterMismatchError, match=expected):
        load(tmp_path, larger)


def test_another_kind_of_model(tmp_path):
    _with_fields(save(tmp_path), **TOO_MUCH)
    tensors = load_file(tmp_path / WEIGHTS)
    save_file({key.replace("encoder.layers", "model.h"): value for key, value in tensors.items()}, tmp_path / WEIGHTS)
    expected = (
        r"\(it has encoder\.layers\.\d\.query and the like\): the adapter is of another base\. .* names org/larger"
    )
    with pytest.raises(jlora.AdapterMismatchError, match=expected):
        load(tmp_path)


def test_names_that_a_wrapper_has_made_longer(tmp_path):
    tensors = load_file(save(tmp_path) / WEIGHTS)
    longer = {key.replace("base_model.model.", "policy."): value for key, value in tensors.items()}
    save_file(longer, tmp_path / WEIGHTS)
    expected = (
        rf"{WEIGHTS}: policy\.encoder\.layers\.\d\.query\.lora_\w\.weight: expected the base's name of the module,"
        r" encoder\.layers\.\d\.query, found 'policy\.' before it\. .* or rename the keys"
    )
    with pytest.raises(jlora.AdapterMismatchError, match=expected):
        load(tmp_path)


def test_transposed_tensors(tmp_path):
    tensors = load_file(save(tmp_path) / WEIGHTS)
    turned = {key: np.ascontiguousarray(value.T) if "lora_" in key else value for key, value in tensors.items()}
    save_file(turned, tmp_path / WEIGHTS)
    expected = (
        r"query: expected lora_A\.weight of shape \(r, in\) .*, found \(4, 2\) and \(2, 4\), which are transposed"
    )
    with pytest.raises(jlora.AdapterMismatchError, match=expected):
        load(tmp_path)


def test_a_base_that_has_only_some_of_the_modules_is_not_called_another(tmp_path):
    tensors = load_file(save(tmp_path) / WEIGHTS)
    more = {key.replace("query", "key"): value for key, value in tensors.items() if "query" in key}
    save_file(tensors | more, tmp_path / WEIGHTS)
    with pytest.raises(
        jlora.AdapterMismatchError, match=r"key\.lora_A\.weight: found, but the base has no module encoder"
    ):
        load(tmp_path)


def test_the_modules_of_a_file():
    keys = [f"base_model.model.{name}" for name in ("a.b.lora_A.weight", "a.b.lora_B.weight", "t.lora_embedding_A")]
    assert adapted_modules(dict.fromkeys(keys, normal(1, 2, 2))) == ["a.b", "t"]
