"""Weights in and out: every key, shape and value comes back; what does not fit is named."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jlora
from jlora.errors import JloraError
from jlora.models.registry import abstract_base, build, example_batch
from jlora.pretrained.folder import Planned, write_model
from jlora.pretrained.source import PretrainedSource
from jlora.pretrained.weights import load_weights, save_base
from jlora.tree.leaf_paths import leaves_by_path
from jlora.tree.module_names import hf_keys, is_stacked, is_transposed
from tests.support.models import decoder_cases
from tests.support.models import encoder_cases as cases


@pytest.fixture(params=cases.ENCODERS)
def saved(request, tmp_path):
    """(PyTorch model, the folder it wrote, our model without weights) of each family."""
    oracle = cases.torch_classifier(cases.tiny_config(request.param, num_labels=3))
    folder = tmp_path / "saved"
    oracle.save_pretrained(folder)
    return oracle, folder, build(oracle.config)


@pytest.fixture
def bert(tmp_path):
    """(the tensors of a tiny BERT classifier, a function that loads them after a change)."""
    config = cases.tiny_config("bert")
    oracle = cases.torch_classifier(config)
    tensors = {key: value.numpy() for key, value in oracle.state_dict().items()}

    def load(changed, **options):
        save_file(changed, tmp_path / "model.safetensors")
        return load_weights(build(config), PretrainedSource(tmp_path), **options)

    return tensors, load


def _assert_same_tree(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def _assert_same_file(file, expected):
    found = load_file(file)
    assert {key: value.dtype for key, value in found.items()} == {k: v.dtype for k, v in expected.items()}
    jax.tree.map(np.testing.assert_array_equal, found, dict(expected))


def test_load_then_save_gives_back_every_key_shape_and_value(saved, tmp_path):
    _, folder, model = saved
    save_base(tmp_path / "again", model, load_weights(model, PretrainedSource(folder)))
    _assert_same_file(tmp_path / "again" / "model.safetensors", load_file(folder / "model.safetensors"))


def test_shards_are_read_as_one_file_is(saved, tmp_path):
    oracle, folder, model = saved
    oracle.save_pretrained(tmp_path / "shards", max_shard_size=20_000)
    base = load_weights(model, PretrainedSource(folder))
    _assert_same_tree(load_weights(model, PretrainedSource(tmp_path / "shards")), base)
    save_base(tmp_path / "again", model, base, max_shard_bytes=20_000)
    assert len(list((tmp_path / "again").glob("model-*.safetensors"))) > 1
    _assert_same_tree(load_weights(model, PretrainedSource(tmp_path / "again")), base)


def test_a_shard_that_is_not_there_is_named(saved, tmp_path):
    _, folder, model = saved
    save_base(tmp_path / "shards", model, load_weights(model, PretrainedSource(folder)), max_shard_bytes=20_000)
    first = min((tmp_path / "shards").glob("model-*.safetensors"))
    first.unlink()
    expected = rf"{first.name}: expected by model\.safetensors\.index\.json; found no such file; download or copy"
    with pytest.raises(JloraError, match=expected):
        load_weights(model, PretrainedSource(tmp_path / "shards"))


def test_pytorch_opens_what_is_saved_and_gives_the_same_logits(saved, tmp_path):
    transformers = pytest.importorskip("transformers")
    oracle, folder, model = saved
    save_base(tmp_path / "again", model, load_weights(model, PretrainedSource(folder)), max_shard_bytes=20_000)
    auto = transformers.AutoModelForSequenceClassification
    again = auto.from_pretrained(tmp_path / "again", attn_implementation="eager").eval()
    assert type(again) is type(oracle)
    assert again.config.architectures == [type(oracle).__name__]
    batch = cases.random_batch(model.config)
    np.testing.assert_array_equal(cases.torch_logits(again, batch), cases.torch_logits(oracle, batch))


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_other_dtypes_are_read_exactly_and_held_in_float32(bert, dtype):
    tensors, load = bert
    base = load({key: value.astype(dtype) for key, value in tensors.items()})
    _assert_same_tree(base, load({key: value.astype(dtype).astype(np.float32) for key, value in tensors.items()}))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(base))


def test_a_bfloat16_file_comes_back_bit_for_bit(bert, tmp_path):
    tensors, load = bert
    rounded = {key: value.astype(ml_dtypes.bfloat16) for key, value in tensors.items()}
    base = load(rounded)
    save_base(tmp_path / "again", build(cases.tiny_config("bert")), base, dtype="bfloat16")
    _assert_same_file(tmp_path / "again" / "model.safetensors", rounded)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32, np.float64])
def test_a_base_in_bfloat16_is_rounded_once_and_written_exactly(bert, tmp_path, dtype):
    tensors, load = bert
    rounded = {key: value.astype(ml_dtypes.bfloat16) for key, value in tensors.items()}
    base = load({key: value.astype(dtype) for key, value in tensors.items()}, param_dtype=jnp.bfloat16)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(base))
    model = build(cases.tiny_config("bert"))
    for name in ("bfloat16", "float32"):
        save_base(tmp_path / name, model, base, dtype=name)
        found = load_file(tmp_path / name / "model.safetensors")
        jax.tree.map(np.testing.assert_array_equal, found, {key: value.astype(name) for key, value in rounded.items()})


def test_a_new_head_has_the_dtype_of_the_rest(bert):
    tensors, load = bert
    base = load(_renamed(tensors, "bert.", ""), key=jax.random.key(0), param_dtype=jnp.bfloat16)
    assert base["params"]["classifier"]["kernel"].dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.int8, "float32"])
def test_another_dtype_of_the_parameters_is_an_error(bert, dtype):
    tensors, load = bert
    with pytest.raises(JloraError, match="param_dtype: expected float32 or bfloat16; found"):
        load(tensors, param_dtype=dtype)


def test_a_loaded_base_outlives_its_files(bert, tmp_path):
    tensors, load = bert
    base = load(tensors)
    expected = jax.tree.map(lambda leaf: np.array(leaf, copy=True), base)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"\0" * file.stat().st_size)
    _assert_same_tree(base, expected)


def _write_random(folder: Path, dtype: str, max_shard_bytes: int) -> None:
    """A Llama of 12 layers of 3.4 M parameters and an embedding of 4.2 M."""
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "num_key_value_heads": 8}
    config = decoder_cases.tiny_decoder(
        "llama", **sizes, head_dim=64, vocab_size=8192, num_hidden_layers=12, tie_word_embeddings=True
    )
    rng, tensors = np.random.default_rng(0), {}
    for path, leaf in leaves_by_path(abstract_base(build(config))).items():
        shape = leaf.shape[1:] if is_stacked(path) else leaf.shape
        shape = shape[::-1] if is_transposed(path) else shape
        for key in hf_keys(path, leaf.shape[0] if is_stacked(path) else None):
            tensors[key] = Planned(shape, lambda shape=shape: rng.random(shape, np.float32))
    write_model(folder, tensors, [config], dtype, max_shard_bytes)


@pytest.mark.parametrize(
    ("model_type", "kind", "dtype"),
    [("llama", "nf4", jnp.bfloat16), ("gpt2", "int8", jnp.float32), ("bert", "int8", jnp.bfloat16)],
)
def test_a_base_quantized_while_it_is_read_is_the_one_quantized_behind(model_type, kind, dtype, tmp_path):
    if model_type == "bert":
        oracle = cases.torch_classifier(cases.tiny_config("bert"))
    else:
        oracle = decoder_cases.torch_decoder(decoder_cases.tiny_decoder(model_type))
    oracle.save_pretrained(tmp_path)
    model = build(oracle.config)
    found = load_weights(model, PretrainedSource(tmp_path), param_dtype=dtype, quantize=kind)
    dense = load_weights(model, PretrainedSource(tmp_path), param_dtype=dtype)
    expected = jlora.quantize(dense, kind, model.apply, example_batch(model.config))
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    _assert_same_tree(found, expected)
    save_base(tmp_path / "again", model, found)
    _assert_same_tree(load_weights(model, PretrainedSource(tmp_path / "again")), jlora.dequantize(found, jnp.float32))


def test_a_weight_that_cannot_be_quantized_is_named_with_its_file(bert):
    tensors, load = bert
    broken = np.full_like(tensors[QUERY], np.nan)
    with pytest.raises(JloraError, match=rf"model.safetensors: {QUERY}: expected finite numbers"):
        load(tensors | {QUERY: broken}, quantize="int8")


def test_another_kind_of_quantization_is_an_error(bert):
    tensors, load = bert
    with pytest.raises(JloraError, match="quantize: expected one of nf4, int8; found 'fp4'"):
        load(tensors, quantize="fp4")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's count of resident bytes")
def test_loading_takes_little_more_than_the_model_and_saving_little_at_all(tmp_path):
    for dtype, shard_bytes in {"float32": 30_000_000, "bfloat16": 10**12}.items():
        _write_random(tmp_path / dtype, dtype, shard_bytes)
    script = Path(__file__).parents[2] / "support" / "programs" / "peak_memory.py"
    command = [sys.executable, str(script), str(tmp_path)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "100000", "PYTHONPATH": str(script.parents[3])}
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    embedding = 8192 * 512
    for found, size, beside in zip(json.loads(output), (180e6, 90e6, 29e6), (0, 0, 2 * embedding), strict=True):
        assert size < found["base"] < 1.03 * size
        assert 0.9 * found["base"] < found["load"] < 1.2 * found["base"] + beside, found
        assert found["save"] < 4 * embedding, found


def _renamed(tensors, start, new):
    return {new + key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}


def test_a_bare_encoder_gets_a_seeded_head_that_the_log_names(bert, caplog):
    tensors, load = bert
    whole = load(tensors)
    bare = _renamed(tensors, "bert.", "") | {"embeddings.position_ids": np.arange(24)[None]}
    with caplog.at_level(logging.WARNING, "jlora"):
        base = load(bare, key=jax.random.key(3))
    assert "newly initialised: classifier.bias, classifier.weight" in caplog.text
    _assert_same_tree(base["params"]["bert"], whole["params"]["bert"])
    model = build(cases.tiny_config("bert"))
    fresh = model.init(jax.random.key(3), cases.random_batch(model.config))["params"]["classifier"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), base["params"]["classifier"], fresh)
    _assert_same_tree(load(bare, key=jax.random.key(3)), base)


def test_a_new_head_without_a_key_is_an_error(bert):
    tensors, load = bert
    with pytest.raises(JloraError, match=r"expected classifier.bias, classifier.weight; found no such head.*key="):
        load(_renamed(tensors, "bert.", ""))


@pytest.mark.parametrize("family", cases.ENCODERS)
@pytest.mark.parametrize("head", ["", "MaskedLM", "QuestionAnswering"])
def test_checkpoints_of_other_heads_are_normal_starts(family, head, tmp_path, caplog):
    config = cases.tiny_config(family)
    oracle = cases.torch_classifier(config, head)
    oracle.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, "jlora"):
        base = load_weights(build(config), PretrainedSource(tmp_path), key=jax.random.key(0))
    words = base["params"][family]["embeddings"]["word_embeddings"]["embedding"]
    np.testing.assert_array_equal(words, oracle.get_input_embeddings().weight.detach().numpy())
    assert "classifier" in caplog.text
    assert ("not used: " in caplog.text) == (head != "" or family == "roberta")


def test_old_names_of_layer_norms_and_buffers_are_accepted(bert):
    tensors, load = bert
    expected = load(tensors)
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in tensors.items()
    }
    assert set(old) != set(tensors)
    _assert_same_tree(load(old | {"bert.embeddings.position_ids": np.arange(24)[None]}), expected)


QUERY = "bert.encoder.layer.1.attention.self.query.weight"


def test_a_missing_key_is_an_error(bert):
    tensors, load = bert
    with pytest.raises(JloraError, match=f"expected {QUERY}; found no such key"):
        load({key: value for key, value in tensors.items() if key != QUERY}, key=jax.random.key(0))


def test_half_a_head_is_an_error(bert):
    tensors, load = bert
    with pytest.raises(JloraError, match=r"expected classifier.bias; found no such key"):
        load({key: value for key, value in tensors.items() if key != "classifier.bias"}, key=jax.random.key(0))


def test_an_unexpected_key_is_an_error_with_the_nearest_name(bert):
    tensors, load = bert
    with pytest.raises(
        JloraError, match=r"model.safetensors: bert.encoder.layer.2.*nearest: .*layer.1.*If config.json is"
    ):
        load(tensors | {QUERY.replace(".1.", ".2."): tensors[QUERY]})


def test_a_key_that_is_there_twice_is_an_error(bert):
    tensors, load = bert
    with pytest.raises(JloraError, match=r"expected once"):
        load(tensors | {QUERY.removeprefix("bert."): tensors[QUERY]})


def test_a_wrong_shape_is_an_error(bert):
    tensors, load = bert
    with pytest.raises(
        JloraError, match=rf"{QUERY}: expected shape \(32, 32\); found \(32, 31\)\. If config\.json is of"
    ):
        load(tensors | {QUERY: tensors[QUERY][:, 1:].copy()})


def test_integer_weights_are_an_error(bert):
    tensors, load = bert
    with pytest.raises(
        JloraError, match=f"{QUERY}: expected dtype F64, F32, F16, BF16; found I8. If the weights are quantized"
    ):
        load(tensors | {QUERY: tensors[QUERY].astype(np.int8)})


def test_a_tree_of_another_model_is_not_saved(bert, tmp_path):
    tensors, load = bert
    base = load(tensors)
    other = build(cases.tiny_config("bert", num_labels=5))
    with pytest.raises(JloraError, match=r"params/classifier/bias: expected shape \(5,\); found \(2,\)"):
        save_base(tmp_path / "out", other, base)
    del base["params"]["classifier"]["bias"]
    with pytest.raises(JloraError, match=r"params/classifier/bias: expected shape \(2,\); found no such leaf"):
        save_base(tmp_path / "out", build(cases.tiny_config("bert")), base)
    assert not (tmp_path / "out").exists()


def test_every_leaf_of_a_loaded_base_is_named_as_init_names_it(saved):
    _, folder, model = saved
    base = load_weights(model, PretrainedSource(folder))
    assert list(leaves_by_path(base)) == list(
        leaves_by_path(model.init(jax.random.key(0), cases.random_batch(model.config)))
    )
