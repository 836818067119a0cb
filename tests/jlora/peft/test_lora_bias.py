"""PEFT's `lora_bias`: with its module's own bias it is one trained bias (PEFT's logits are in test_peft_table)."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jlora
from tests.support.adapters.lora_cases import normal

WEIGHTS = "adapter_model.safetensors"
BASE = {"up": {"kernel": normal(1, 4, 6), "bias": normal(2, 6)}, "down": {"kernel": normal(3, 6, 4)}}
X = normal(4, 3, 4)


def _fn(base, x):
    return jnp.tanh(x @ base["up"]["kernel"] + base["up"]["bias"][None]) @ base["down"]["kernel"]


def _saved(folder: Path, of_down: np.ndarray, **fields: object) -> Path:
    """An adapter with `lora_B.bias` in both modules, the second of which has no bias of its own."""
    config = jlora.LoraConfig(r=2, lora_alpha=3, target_modules=["up", "down"], init_lora_weights=False)
    jlora.save_adapter(folder, jlora.init(jax.random.key(0), config, BASE, _fn, X), config)
    tensors = load_file(folder / WEIGHTS) | {"base_model.model.up.lora_B.bias": np.asarray(normal(5, 6))}
    save_file(tensors | {"base_model.model.down.lora_B.bias": of_down}, folder / WEIGHTS)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_bias": True} | fields))
    return folder


def test_it_is_added_to_the_modules_own(tmp_path):
    adapter, config = jlora.load_adapter(_saved(tmp_path, np.zeros(4, np.float32)), BASE, _fn, X)
    assert config.bias == "lora_only"
    np.testing.assert_allclose(adapter["up/bias"].value, BASE["up"]["bias"] + 1.5 * normal(5, 6), rtol=1e-6)


def test_a_trained_bias_of_the_module_is_the_one_that_it_is_added_to(tmp_path):
    _saved(tmp_path, np.zeros(4, np.float32), bias="lora_only")
    own = {"base_model.model.up.base_layer.bias": np.ones(6, np.float32)}
    save_file(load_file(tmp_path / WEIGHTS) | own, tmp_path / WEIGHTS)
    adapter, _ = jlora.load_adapter(tmp_path, BASE, _fn, X)
    np.testing.assert_allclose(adapter["up/bias"].value, 1 + 1.5 * normal(5, 6), rtol=1e-6)


def test_a_module_without_a_bias_is_named(tmp_path):
    _saved(tmp_path, np.ones(4, np.float32))
    with pytest.raises(
        jlora.JloraError,
        match=r"down\.lora_B\.bias: expected no such key, or zeros, because .* no bias .* use the adapter with PEFT",
    ):
        jlora.load_adapter(tmp_path, BASE, _fn, X)


def test_shapes_alone_are_not_enough(tmp_path):
    _saved(tmp_path, np.zeros(4, np.float32))
    with pytest.raises(jlora.JloraError, match=r"up/bias: expected an array, because lora_bias is added to"):
        jlora.load_adapter(tmp_path, jax.eval_shape(lambda: BASE), _fn, X)


def test_without_the_field_it_is_no_tensor_of_the_adapter(tmp_path):
    """PEFT would not read it, and compute something else."""
    _saved(tmp_path, np.zeros(4, np.float32), lora_bias=False)
    with pytest.raises(jlora.JloraError, match=r"lora_B\.bias: found, but lora_bias is not true in adapter_config"):
        jlora.load_adapter(tmp_path, BASE, _fn, X)
