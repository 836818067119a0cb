from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from safetensors.numpy import save_file

import jlora
from jlora.errors import nearest
from tests.support.models import decoder_cases
from train.run.lock import hold_lock, require_free

W = {"w": jnp.ones((4, 4))}
X = jnp.ones((2, 4))


def _product(base, x):
    return x @ base["w"]


def _operation_without_a_rule(base, x):
    return x @ jnp.tanh(base["w"])


def _init(base=W, fn=_product, targets=("w",)):
    return jlora.init(jax.random.key(0), jlora.LoraConfig(r=2, target_modules=targets), base, fn, X)


def test_nearest_names_are_few_and_different():
    names = ["query", "query", "queries", "value", "quary", "query_"]
    assert nearest("qury", names).count("query,") == 1
    assert len(nearest("qury", names).removeprefix("; nearest: ").split(", ")) == 3
    assert nearest("xyz", names) == ""


def test_an_operation_without_a_rule_is_a_no_rule_error():
    with pytest.raises(jlora.NoRuleError, match="allow_materialize=True"):
        _init(fn=_operation_without_a_rule)
    with pytest.raises(jlora.NoRuleError, match=r"^w: "):
        jlora.adapt(_operation_without_a_rule)(W, _init(), X)


@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "modules_to_save", "rank_pattern"])
def test_a_name_that_matches_nothing_is_a_target_not_found_error(field):
    entry = {"v": 4} if field == "rank_pattern" else ["v"]
    config = jlora.LoraConfig(r=2, **{"target_modules": ["w"], field: entry})
    with pytest.raises(jlora.TargetNotFoundError, match=field):
        jlora.init(jax.random.key(0), config, W, _product, X)


def test_quantize_that_matches_nothing_is_a_target_not_found_error():
    with pytest.raises(jlora.TargetNotFoundError, match="target_modules"):
        jlora.quantize(W, "int8", _product, X, target_modules=["v"])


@pytest.mark.parametrize("base", [{"v": W["w"]}, {"w": jnp.ones((4, 5))}], ids=["path", "shape"])
def test_an_adapter_of_another_base_is_an_adapter_mismatch_error(base, tmp_path):
    adapter = _init()
    with pytest.raises(jlora.AdapterMismatchError):
        jlora.merge(base, adapter)
    with pytest.raises(jlora.AdapterMismatchError):
        jlora.adapt(_product)(base, adapter, X)
    stacked = {"layer": {"kernel": W["w"]}}

    def model(tree, x):
        return x @ tree["layer"]["kernel"]

    config = jlora.LoraConfig(r=2, target_modules=["layer"])
    jlora.save_adapter(tmp_path, jlora.init(jax.random.key(0), config, stacked, model, X), config)
    with pytest.raises(jlora.AdapterMismatchError):
        jlora.load_adapter(tmp_path, {"layer": {"kernel": jnp.ones((4, 5))}}, model, X)


def _damaged(folder):
    (folder / "adapter_config.json").write_text("{")


def _pickled(folder):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "target_modules": ["w"]}')
    (folder / "adapter_model.bin").write_bytes(b"")


def _unsupported(folder):
    (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}')


def _slow(folder):
    name = "a" * 40
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "target_modules": "(a|aa)+b"}')
    save_file({"x": jnp.ones(1).__array__()}, folder / "adapter_model.safetensors")
    return {name: W["w"]}, lambda base, x: x @ base[name]


@pytest.mark.parametrize("write", [lambda folder: None, _damaged, _pickled, _unsupported, _slow])
def test_a_file_that_is_missing_damaged_or_refused_is_a_file_error(write, tmp_path):
    base, fn = write(tmp_path) or (W, _product)
    with pytest.raises(jlora.FileError):
        jlora.load_adapter(tmp_path, base, fn, X)


def test_a_folder_that_is_not_there_and_a_hub_that_does_not_answer(monkeypatch):
    with pytest.raises(jlora.FileError, match="no such folder"):
        jlora.load_base("a/folder/that/is/not/here")
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(jlora.HubError, match="the hub says: offline"):
        jlora.load_base("someone/model")
    assert issubclass(jlora.HubError, jlora.FileError)


def test_a_model_without_code_for_it_is_an_unsupported_model_error(tmp_path):
    with pytest.raises(jlora.UnsupportedModelError, match="model_type"):
        jlora.default_targets("t5")
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(jlora.UnsupportedModelError, match="model_type"):
        jlora.load_base(tmp_path)


def test_more_tokens_than_positions_are_a_context_length_error():
    model = jlora.pretrained.load.build(decoder_cases.tiny_decoder("llama", max_position_embeddings=8))
    base = jlora.models.registry.abstract_base(model)
    ids = jnp.ones((1, 6), jnp.int32)
    with pytest.raises(jlora.ContextLengthError, match="at most 8 tokens"):
        jlora.generate(model, base, None, ids, ids, max_new_tokens=3, pad_id=0)
    with pytest.raises(jlora.ContextLengthError, match="at most 8 tokens"):
        next(jlora.stream(model, base, None, [1] * 6, max_new_tokens=3))


def test_a_folder_that_is_in_use_is_a_run_folder_error(tmp_path):
    with hold_lock(tmp_path), pytest.raises(jlora.RunFolderError, match="is training in it"):
        require_free(tmp_path)


def test_each_kind_is_one_that_a_user_can_fix():
    kinds = [getattr(jlora, name) for name in jlora.__all__ if name.endswith("Error")]
    assert len(kinds) == 9
    assert all(issubclass(kind, jlora.JloraError) and kind.__doc__ for kind in kinds)
