"""Files that hold no adapter for this base: each error names the file, the key, what was expected and found."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jlora
from tests.support.adapters.lora_cases import normal
from tests.support.adapters.small_adapter import BASE, X, apply, load, save

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def saved(tmp_path) -> Path:
    return save(tmp_path)


def _error(folder, base=BASE):
    with pytest.raises(jlora.JloraError) as caught:
        load(folder, base)
    return str(caught.value)


@pytest.mark.parametrize("key", ["encoder.layers.1.query.lora_B.weight", "head.bias"])
def test_a_missing_key(key, saved):
    tensors = load_file(saved / WEIGHTS)
    del tensors[f"base_model.model.{key}"]
    save_file(tensors, saved / WEIGHTS)
    assert f"{WEIGHTS}: base_model.model.{key}: expected a tensor of shape" in (message := _error(saved))
    assert "found no such key" in message


def test_an_unexpected_key(saved):
    tensors = load_file(saved / WEIGHTS) | {"base_model.model.encoder.layers.2.query.lora_A.weight": np.ones((2, 4))}
    save_file(tensors, saved / WEIGHTS)
    message = _error(saved)
    assert f"{WEIGHTS}: base_model.model.encoder.layers.2.query.lora_A.weight: found, but" in message
    assert "the base has the layers 0 to 1: the adapter is of a larger base" in message


@pytest.mark.parametrize("key", ["encoder.layers.0.query.lora_A.weight", "head.weight"])
def test_a_key_of_another_shape(key, saved):
    tensors = load_file(saved / WEIGHTS)
    tensors[f"base_model.model.{key}"] = np.ones((7, 4), np.float32)
    save_file(tensors, saved / WEIGHTS)
    expected = (
        "expected the rank 2, which adapter_config.json gives it (r = 2), found 7"
        if "lora_A" in key
        else "expected the shape (3, 4)"
    )
    assert f"{WEIGHTS}: base_model.model.{key}: {expected}" in _error(saved)


def test_another_rank_than_the_configurations(saved):
    path = saved / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 3}))
    expected = "lora_A.weight: expected the rank 3, which adapter_config.json gives it (r = 3), found 2. Correct r or"
    assert expected in _error(saved)


def test_an_adapter_for_another_base(saved):
    other = BASE | {"head": {"kernel": normal(2, 4, 5), "bias": normal(3, 5)}}
    assert "Check that this is the base that the adapter was trained with" in _error(saved, other)


def test_a_truncated_file(saved):
    data = (saved / WEIGHTS).read_bytes()
    for size in (0, 5, len(data) // 2, len(data) - 1):
        (saved / WEIGHTS).write_bytes(data[:size])
        assert f"{saved / WEIGHTS}: expected a whole safetensors file" in _error(saved)


def test_a_pickle_is_never_opened(saved):
    (saved / WEIGHTS).unlink()
    (saved / "adapter_model.bin").write_bytes(b"\x80\x04not to be read")
    assert "expected the adapter's weights as safetensors, found adapter_model.bin, a pickle" in _error(saved)
    (saved / "adapter_model.bin").unlink()
    assert _error(saved).endswith("found none. Copy or download them, too")


@pytest.mark.parametrize(("field", "value"), [("use_qalora", True), ("layer_replication", [[0, 1]])])
def test_features_that_are_not_supported(field, value, saved):
    path = saved / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert f"adapter_config.json: {field}: expected it off or absent (not supported), found {value!r}" in _error(saved)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none(value, saved):
    tensors = load_file(saved / WEIGHTS)
    key = "base_model.model.encoder.layers.1.query.lora_B.weight"
    tensors[key][1, 1] = value
    save_file(tensors, saved / WEIGHTS)
    assert f"{WEIGHTS}: {key}: expected finite numbers, found 1 of 8 NaN or infinite: the training" in _error(saved)


def test_dora_needs_the_bases_numbers(tmp_path):
    config = jlora.LoraConfig(r=2, target_modules=["query"], use_dora=True)
    jlora.save_adapter(tmp_path, jlora.init(jax.random.key(0), config, BASE, apply, X), config)
    shapes = jax.eval_shape(lambda: BASE)
    assert "kernel: expected the base's values, whose norms DoRA needs; found a shape alone" in _error(tmp_path, shapes)


@pytest.mark.parametrize(
    ("named", "given"),
    [
        ("google-bert/bert-base-uncased", "google-bert/bert-base-uncased"),
        ("bert-base-uncased", "google-bert/bert-base-uncased"),
        ("Org/Model", "org/model"),
        ("org/model", "/data/models/model"),
        ("org/model", "/root/.cache/huggingface/hub/models--org--model/snapshots/0a1b"),
        ("./model", "/elsewhere/model/"),
        (None, "org/model"),
        ("", "org/model"),
        ("org/model", None),
    ],
)
def test_a_base_of_the_same_name(named, given, saved):
    _name_base(saved, named)
    assert load(saved, base_model=given)


@pytest.mark.parametrize(
    ("named", "given"),
    [("org/model", "org/other"), ("one/model", "two/model"), ("org/model", "/data/other"), ("a", "b")],
)
def test_a_base_of_another_name(named, given, saved):
    _name_base(saved, named)
    with pytest.raises(jlora.JloraError) as caught:
        load(saved, base_model=given)
    message = f"adapter_config.json: base_model_name_or_path: expected {given}, found {named}. Load the base that"
    assert message in str(caught.value)


def _name_base(folder, name):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": name}))
