"""Weights in and out: every key, shape and value comes back; what does not fit is named."""

from __future__ import annotations

import logging

import encoder_cases as cases
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jlora.errors import JloraError
from jlora.models import build
from jlora.paths import leaves_by_path
from jlora.weights import load_weights, save_base


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
        return load_weights(build(config), str(tmp_path), **options)

    return tensors, load


def _assert_same_tree(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def _assert_same_file(file, expected):
    found = load_file(file)
    assert {key: value.dtype for key, value in found.items()} == {k: v.dtype for k, v in expected.items()}
    jax.tree.map(np.testing.assert_array_equal, found, dict(expected))


def test_load_then_save_gives_back_every_key_shape_and_value(saved, tmp_path):
    _, folder, model = saved
    save_base(tmp_path / "again", model, load_weights(model, str(folder)))
    _assert_same_file(tmp_path / "again" / "model.safetensors", load_file(folder / "model.safetensors"))


def test_shards_are_read_as_one_file_is(saved, tmp_path):
    oracle, folder, model = saved
    oracle.save_pretrained(tmp_path / "shards", max_shard_size=20_000)
    base = load_weights(model, str(folder))
    _assert_same_tree(load_weights(model, str(tmp_path / "shards")), base)
    save_base(tmp_path / "again", model, base, max_shard_bytes=20_000)
    assert len(list((tmp_path / "again").glob("model-*.safetensors"))) > 1
    _assert_same_tree(load_weights(model, str(tmp_path / "again")), base)


def test_pytorch_opens_what_is_saved_and_gives_the_same_logits(saved, tmp_path):
    transformers = pytest.importorskip("transformers")
    oracle, folder, model = saved
    save_base(tmp_path / "again", model, load_weights(model, str(folder)), max_shard_bytes=20_000)
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
        base = load_weights(build(config), str(tmp_path), key=jax.random.key(0))
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
    with pytest.raises(JloraError, match=r"model.safetensors: bert.encoder.layer.2.*nearest: .*layer.1"):
        load(tensors | {QUERY.replace(".1.", ".2."): tensors[QUERY]})


def test_a_key_that_is_there_twice_is_an_error(bert):
    tensors, load = bert
    with pytest.raises(JloraError, match=r"expected once"):
        load(tensors | {QUERY.removeprefix("bert."): tensors[QUERY]})


def test_a_wrong_shape_is_an_error(bert):
    tensors, load = bert
    with pytest.raises(JloraError, match=rf"{QUERY}: expected shape \(32, 32\); found \(32, 31\)"):
        load(tensors | {QUERY: tensors[QUERY][:, 1:].copy()})


def test_integer_weights_are_an_error(bert):
    tensors, load = bert
    with pytest.raises(JloraError, match=f"{QUERY}: expected dtype F64, F32, F16, BF16; found I8"):
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
    base = load_weights(model, str(folder))
    assert list(leaves_by_path(base)) == list(
        leaves_by_path(model.init(jax.random.key(0), cases.random_batch(model.config)))
    )
