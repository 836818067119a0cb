"""GPT-2's relatives: PyTorch's logits, files and greedy text, packed rows, adapters, dropout, refused configs."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jlora
from jlora.models.registry import abstract_base, build
from tests.support.adapters.lora_cases import assert_adapted_is_merged, random_adapter
from tests.support.models import decoder_cases as cases
from tests.support.models.encoder_cases import assert_same_dropout

_FALCON_40B = {"new_decoder_architecture": True, "num_kv_heads": 2}
_FALCON_RW = {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}
SWITCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("bloom", {}),
    "bloom, 6 heads, residuals behind norms": (
        "bloom",
        {"hidden_size": 48, "n_head": 6, "apply_residual_connection_post_layernorm": True},
    ),
    "falcon-7b": ("falcon", {}),
    "falcon-11b": ("falcon", _FALCON_40B | {"num_ln_in_parallel_attn": 1, "ffn_hidden_size": 48}),
    "falcon-40b": ("falcon", _FALCON_40B | {"tie_word_embeddings": False}),
    "falcon-rw": ("falcon", _FALCON_RW),
    "gpt2 as Mistral trained it": (
        "gpt2",
        {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    ),
    "gpt2, unscaled, untied": ("gpt2", {"scale_attn_weights": False, "tie_word_embeddings": False}),
    "gpt_neo": ("gpt_neo", {"attention_types": [[["global", "local"], 2], [["global"], 1]], "num_layers": 5}),
    "gptj": ("gptj", {"n_inner": 48}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox, in turn, tied, no biases": (
        "gpt_neox",
        {"use_parallel_residual": False, "tie_word_embeddings": True, "attention_bias": False, "rotary_pct": 1.0},
    ),
    "opt": ("opt", {}),
    "opt-350m": ("opt", {"do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "galactica, untied, without its last norm": (
        "opt",
        {"enable_bias": False, "layer_norm_elementwise_affine": False, "activation_function": "gelu"}
        | {"_remove_final_layer_norm": True, "tie_word_embeddings": False},
    ),
}
"""{name: (model_type, what differs)}: the switches in which published checkpoints differ."""
FAMILIES = ["bloom", "falcon-40b", "falcon-rw", "gpt_neo", "gptj", "gpt_neox", "opt-350m"]


@pytest.fixture(scope="module")
def loaded(request, tmp_path_factory):
    """(PyTorch's model, its folder, our model, our base) of one of SWITCHES."""
    return cases.loaded_case(*SWITCHES[request.param], tmp_path_factory.mktemp("theirs"))


all_switches = pytest.mark.parametrize("loaded", SWITCHES, indirect=True, scope="module")
all_families = pytest.mark.parametrize("loaded", FAMILIES, indirect=True, scope="module")


@all_switches
def test_logits_are_pytorchs_padded_and_packed(loaded):
    oracle, _, model, base = loaded
    cases.assert_same_logits(oracle, model, base)


@all_switches
def test_what_is_written_is_what_was_read(loaded, tmp_path):
    oracle, folder, model, base = loaded
    cases.assert_same_files(oracle, folder, model, base, tmp_path)


@all_switches
def test_greedy_generation_with_a_cache_is_pytorchs(loaded):
    oracle, _, model, base = loaded
    cases.assert_same_generation(oracle, model, base)


@all_families
def test_half_precision_runs_without_promotion(loaded):
    """Parameters and computation in bfloat16: hidden states too, logits float32."""
    model = build(loaded[2].config, dtype=jnp.bfloat16)
    base = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), abstract_base(model))
    batch = cases.random_tokens(model.config)
    hidden = jax.eval_shape(partial(model.apply, method="hidden"), base, batch)
    assert hidden.dtype == jnp.bfloat16
    assert jax.eval_shape(partial(model.apply, method="logits"), base, hidden).dtype == jnp.float32


@all_families
def test_adapted_is_merged(loaded):
    """One adapter on all linears, layers computed again."""
    model = build(loaded[2].config, remat=True)
    base, batch = loaded[3], cases.random_tokens(model.config, rows=1)
    adapter = random_adapter(model.apply, base, batch, targets="all-linear")
    gradients = model.config.model_type == "gpt_neox"
    assert_adapted_is_merged(
        jax.jit(model.apply), base, adapter, batch, tolerance=3e-5, gradients=gradients, jit=cases.quick
    )


@pytest.mark.parametrize(
    ("model_type", "rates"),
    [
        ("bloom", {"hidden_dropout": 0.1, "attention_dropout": 0.2}),
        ("falcon", {"hidden_dropout": 0.1}),
        ("gpt_neo", {"embed_dropout": 0.1, "attention_dropout": 0.2, "resid_dropout": 0.3}),
        ("gptj", {"embd_pdrop": 0.1, "attn_pdrop": 0.2, "resid_pdrop": 0.3}),
        ("gpt_neox", {"hidden_dropout": 0.1, "attention_dropout": 0.2}),
        ("opt", {"dropout": 0.1, "attention_dropout": 0.2}),
    ],
)
def test_drops_where_pytorch_does(model_type, rates, tmp_path, monkeypatch):
    oracle = cases.torch_decoder(cases.tiny_decoder(model_type, **rates))
    ids = cases.random_tokens(oracle.config)["input_ids"][::2]
    assert_same_dropout(oracle, tmp_path, {"input_ids": ids, "attention_mask": jnp.ones_like(ids)}, monkeypatch)


@pytest.mark.parametrize(
    ("model_type", "switches", "key"),
    [
        ("falcon", {"attention_dropout": 0.1}, "attention_dropout"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("gpt_neo", {"attention_types": [[["global", "blocked"], 1]]}, "attention_types.*'blocked'"),
        ("gptj", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("opt", {"layerdrop": 0.1}, "layerdrop"),
        ("bloom", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_a_config_that_is_not_honoured_is_refused_by_its_key(model_type, switches, key):
    with pytest.raises(jlora.JloraError, match=key):
        abstract_base(build(cases.tiny_decoder(model_type, **switches)))
