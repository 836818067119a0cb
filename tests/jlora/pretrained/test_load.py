"""`load_base` composes config, module and weights; labels and stop tokens go round."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jlora.errors import JloraError
from jlora.pretrained.load import example_batch, load_base, save_base, stop_ids
from jlora.pretrained.source import PretrainedSource
from tests.support.models import decoder_cases
from tests.support.models import encoder_cases as cases


def test_load_base_composes_config_module_and_weights(tmp_path):
    oracle = cases.torch_classifier(cases.tiny_config("bert"), "")
    model, base = cases.load_saved(
        oracle,
        tmp_path,
        num_labels=4,
        key=jax.random.key(0),
        dtype=jnp.bfloat16,
        param_dtype=jnp.bfloat16,
        remat=True,
        hidden_act="relu",
    )
    assert (model.dtype, model.remat, model.config.hidden_act) == (jnp.bfloat16, True, "relu")
    assert {leaf.dtype for leaf in jax.tree.leaves(base)} == {jnp.dtype(jnp.bfloat16)}
    logits = jax.eval_shape(model.apply, base, example_batch(model.config))
    assert (logits.shape, logits.dtype) == ((1, 4), jnp.float32)


@pytest.mark.parametrize("name", [None, 3, ["bert"]])
def test_a_name_that_is_no_text_is_an_error(name):
    with pytest.raises(JloraError, match=r"^name: expected a folder, a GGUF file or a name on the hub, found "):
        load_base(name)


@pytest.mark.parametrize("dtype", ["fp8", "int8", 7])
def test_a_dtype_that_is_none_is_an_error(dtype):
    with pytest.raises(JloraError, match=rf"^dtype: expected a floating dtype, .*, found {dtype!r}$"):
        load_base("bert", dtype=dtype)


def test_label_names_go_round(tmp_path):
    oracle = cases.torch_classifier(cases.tiny_config("distilbert"))
    names = {0: "no", 1: "yes"}
    model, base = cases.load_saved(oracle, tmp_path / "in", id2label=names, problem_type="single_label_classification")
    save_base(tmp_path / "out", model, base)
    again, _ = load_base(str(tmp_path / "out"))
    assert again.config.id2label == names
    assert again.config.problem_type == "single_label_classification"


def test_a_merged_model_stops_where_the_original_did(tmp_path):
    transformers = pytest.importorskip("transformers")
    oracle = decoder_cases.torch_decoder(decoder_cases.tiny_decoder("llama", eos_token_id=2, bos_token_id=1))
    oracle.generation_config = transformers.GenerationConfig(eos_token_id=[2, 7], bos_token_id=1, pad_token_id=0)
    model, base = decoder_cases.load_saved(oracle, tmp_path / "in")
    assert stop_ids(model.config) == (2, 7)
    save_base(tmp_path / "out", model, base)
    found = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert (found.eos_token_id, found.bos_token_id, found.pad_token_id) == ([2, 7], 1, 0)
    assert stop_ids(load_base(str(tmp_path / "out"))[0].config) == (2, 7)


@pytest.mark.parametrize(("eos", "expected"), [(None, ()), (3, (3,)), ([3, 4], (3, 4))])
def test_stop_ids_without_a_file_of_their_own_are_the_configs(tmp_path, eos, expected):
    decoder_cases.tiny_decoder("llama", eos_token_id=eos).save_pretrained(tmp_path)
    assert stop_ids(PretrainedSource(tmp_path).config) == expected
    assert stop_ids(PretrainedSource(tmp_path).config_with(eos_token_id=9)) == (9,)


def test_a_refused_config_is_refused_before_weights_are_opened(tmp_path):
    cases.tiny_config("bert", position_embedding_type="relative_key").save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(JloraError, match="position_embedding_type: expected 'absolute'; found 'relative_key'"):
        load_base(str(tmp_path))
