"""Adapters' tensors under PEFT's keys: a state_dict saved by hand, other wrappers, files without weights."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jlora.errors import JloraError
from jlora.peft.stored_tensors import WEIGHTS, peft_keys, read_tensors
from tests.support.adapters import peft_cases, small_adapter
from tests.support.models.encoder_cases import tiny_config, torch_classifier

PREFIX = "base_model.model."


@pytest.mark.parametrize("name", ["default", "my_adapter"])
@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": ["query", "word_embeddings"], "use_dora": True},
        {"target_modules": ["query"], "modules_to_save": ["classifier", "pooler"], "bias": "all"},
        {"target_modules": ["query"], "trainable_token_indices": [3, 4]},
        {"target_modules": ["query"], "lora_bias": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_state_dict_has_the_keys_of_a_file(family, fields, name):
    """The base's own weights apart, which keep their keys, or those of a `base_layer` or `original_module`."""
    peft = pytest.importorskip("peft")
    if family == "roberta" and "pooler" in fields.get("modules_to_save", ()):
        fields = fields | {"modules_to_save": ["classifier"]}
    model = peft.get_peft_model(torch_classifier(tiny_config(family)), peft.LoraConfig(**fields), adapter_name=name)
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    file = peft.get_peft_model_state_dict(model, adapter_name=name)
    expected = peft_keys({key: value.numpy() for key, value in file.items()}, "file")
    found = peft_keys(state, "state")
    assert all(np.array_equal(found[key], value) for key, value in expected.items())
    others = found.keys() - expected.keys()
    assert [key for key in others if "lora_" in key or "delta" in key or "modules_to_save" in key] == []


def test_keys_of_a_file_stay_as_they_are(tmp_path):
    tensors = load_file(small_adapter.save(tmp_path) / WEIGHTS)
    assert peft_keys(tensors, "file").keys() == tensors.keys()
    assert read_tensors(tmp_path).keys() == tensors.keys()


@pytest.mark.parametrize("change", peft_cases.OTHER_FILES, ids=str)
def test_what_others_do_to_keys_is_undone(change, tmp_path):
    expected = load_file(small_adapter.save(tmp_path) / WEIGHTS)
    peft_cases.OTHER_FILES[change](tmp_path)
    assert read_tensors(tmp_path).keys() == expected.keys()


def test_two_adapters_are_not_one():
    tensors = {f"{PREFIX}query.lora_A.{name}.weight": np.ones((2, 2)) for name in ("first", "second")}
    with pytest.raises(
        JloraError, match=r"expected one adapter, found first, second\. Save the one that you want with"
    ):
        peft_keys(tensors, "file")


def test_two_values_for_one_key_are_refused():
    tensors = {f"{PREFIX}head.weight": np.ones(2), f"{PREFIX}head.modules_to_save.default.weight": np.zeros(2)}
    with pytest.raises(JloraError, match=r"expected the same values as in base_model\.model\.head\.weight"):
        peft_keys(tensors, "file")
    tensors = dict.fromkeys(tensors, np.ones(2))
    assert list(peft_keys(tensors, "file")) == [f"{PREFIX}head.weight"]


def test_tensors_that_zero3_left_empty(tmp_path):
    tensors = load_file(small_adapter.save(tmp_path) / WEIGHTS)
    save_file({key: np.zeros((0,), np.float32) for key in tensors}, tmp_path / WEIGHTS)
    with pytest.raises(
        JloraError, match=r"expected weights, found an empty tensor of shape \(0,\)\. DeepSpeed ZeRO-3 .* Save aga"
    ):
        small_adapter.load(tmp_path)


def test_the_line_that_converts_a_pickle_does(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as torch_file

    file = small_adapter.save(tmp_path) / WEIGHTS
    torch.save(torch_file(file), tmp_path / "adapter_model.bin")
    expected = load_file(file)
    file.unlink()
    with pytest.raises(
        JloraError, match=r"found adapter_model\.bin, a pickle, which may run code and is never"
    ) as caught:
        small_adapter.load(tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(str(caught.value).split('python -c "')[1].removesuffix('"'))
    assert all((load_file(file)[key] == value).all() for key, value in expected.items())
    assert small_adapter.load(tmp_path)


def test_another_file_is_named(tmp_path):
    file = small_adapter.save(tmp_path) / WEIGHTS
    file.rename(tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(
        JloraError, match=r"as safetensors, found pytorch_lora_weights\.safetensors\. If that is the adapter, rename"
    ):
        small_adapter.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("global_step100", r"found a checkpoint in parts \(global_step100\)\. Join them first: zero_to_fp32\.py"),
        ("model.weights.h5", r"found model\.weights\.h5, which is not PEFT's\. Save the adapter with PEFT's"),
        ("README.md", r"found none\. Copy or download them, too"),
    ],
)
def test_what_is_there_in_place_of_the_weights_is_named(name, expected, tmp_path):
    (small_adapter.save(tmp_path) / WEIGHTS).unlink()
    (tmp_path / name).touch()
    with pytest.raises(JloraError, match=f"expected the adapter's weights as safetensors, {expected}"):
        small_adapter.load(tmp_path)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (b"PK\x03\x04" + bytes(90), "a ZIP archive, as torch.save and Excel write. Save weights as safetensors"),
        (b"<html>" + bytes(90), "a web page. Download the file itself"),
        (b"", "0 bytes; download or copy it again"),
    ],
)
def test_a_file_of_weights_that_is_something_else_is_called_that(start, expected, tmp_path):
    (small_adapter.save(tmp_path) / WEIGHTS).write_bytes(start)
    with pytest.raises(JloraError, match=f"expected a whole safetensors file; found {expected}"):
        small_adapter.load(tmp_path)


def test_a_gguf_file_is_no_adapter(tmp_path):
    (tmp_path / "lora.gguf").write_bytes(b"GGUF")
    with pytest.raises(
        JloraError, match=r"found a GGUF file\. Give the adapter in PEFT's format, from which it was made"
    ):
        small_adapter.load(tmp_path / "lora.gguf")
