"""Whatever computes attention gives the values, slopes and dropped probabilities of the plain formula."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from transformers import BertConfig, LlamaConfig

import jlora
from jlora.errors import JloraError
from jlora.initialization.abstract_adapter import abstract_adapter
from jlora.models.attention import cudnn
from jlora.models.attention.attention import attention, record_obstacles
from jlora.models.attention.visibility import Visibility, mask_visibility
from jlora.models.registry import abstract_base, build

MASK = np.arange(6)[None, :] < np.array([6, 4, 1])[:, None]


def _inputs(dtype=jnp.float32) -> tuple:
    return tuple(jax.random.normal(key, (3, 6, 2, 8), dtype) for key in jax.random.split(jax.random.key(0), 3))


@pytest.mark.parametrize("kernel", ["blockwise", "full"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("heads", [2, 6])
def test_it_equals_jaxs(heads, dtype, tolerance, kernel):
    """Values and gradients, with as many queries as keys and with three that share one; a bias and a scale."""
    _, key, value = _inputs(dtype)
    query, weights = (jax.random.normal(jax.random.key(i), (3, 6, heads, 8), dtype) for i in (1, 2))
    bias = jax.random.normal(jax.random.key(3), (3, heads, 6))

    def loss(fn, *inputs):
        return (fn(*inputs).astype(jnp.float32) * weights.astype(jnp.float32)).sum()

    def ours(*inputs):
        return attention(*inputs, mask_visibility(jnp.asarray(MASK), kernel), scale=0.3, key_bias=bias)

    def jaxs(*inputs):
        return jax.nn.dot_product_attention(*inputs, mask=MASK[:, None, None], scale=0.3, bias=bias[:, :, None])

    with jax.numpy_dtype_promotion("standard"):  # JAX's own promotes bfloat16 implicitly
        expected, found = jaxs(query, key, value), ours(query, key, value)
        slopes = [jax.grad(loss, (1, 2, 3))(fn, query, key, value) for fn in (ours, jaxs)]
    assert found.dtype == expected.dtype == dtype
    np.testing.assert_allclose(np.float32(found), np.float32(expected), atol=tolerance)
    for one, other in zip(*slopes, strict=True):
        np.testing.assert_allclose(np.float32(one), np.float32(other), atol=8 * tolerance)


@pytest.mark.parametrize("kernel", ["blockwise", "full"])
@pytest.mark.parametrize("dropout", [{}, {"dropout_key": jax.random.key(3), "dropout_rate": 0.4}])
def test_masked_tokens_have_no_influence(dropout, kernel):
    query, key, value = _inputs()
    visibility, masked = mask_visibility(jnp.asarray(MASK), kernel), ~MASK[:, :, None, None]
    changed = attention(query, key + 9.0 * masked, value - 7.0 * masked, visibility, **dropout)
    np.testing.assert_array_equal(attention(query, key, value, visibility, **dropout), changed)


@pytest.mark.parametrize("kernel", ["blockwise", "full"])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(kernel):
    """With value = identity the output is the probabilities themselves."""
    size = 64
    query = key = jnp.zeros((1, size, 1, size))
    value, visibility = jnp.eye(size)[None, :, None, :], Visibility(kernel=kernel)
    found = attention(query, key, value, visibility, dropout_key=jax.random.key(0), dropout_rate=0.25) * size
    assert set(np.unique(np.round(np.asarray(found), 4))) == {0.0, np.float32(1.3333)}
    assert abs(float((found == 0).mean()) - 0.25) < 0.03
    again = attention(query, key, value, visibility, dropout_key=jax.random.key(1), dropout_rate=0.25) * size
    assert abs(float(((found == 0) & (again == 0)).mean()) - 0.0625) < 0.02


def test_no_key_or_no_rate_is_evaluation():
    inputs = (*_inputs(), mask_visibility(jnp.asarray(MASK), "auto"))
    expected = attention(*inputs)
    for options in ({"dropout_rate": 0.5}, {"dropout_key": jax.random.key(0)}):
        np.testing.assert_array_equal(attention(*inputs, **options), expected)


@pytest.mark.parametrize("kernel", ["blockwise", "full"])
def test_a_scale_that_is_an_array_scales_the_scores(kernel):
    inputs, visibility = _inputs(), Visibility(causal=True, kernel=kernel)
    found = attention(*inputs, visibility, scale=jnp.float32(0.3))
    np.testing.assert_allclose(found, attention(*inputs, visibility, scale=0.3), atol=1e-6)


LENGTH = 640
"""Of rows; a number that stands in no other shape of the models below."""


def _llama() -> tuple:
    """(model, batch of packed rows)"""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 96}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": LENGTH}
    names = ("input_ids", "attention_mask", "segment_ids", "position_ids")
    return build(LlamaConfig(**sizes, **heads), dtype=jnp.bfloat16), names, "hidden"


def _bert() -> tuple:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 96}
    more = {"num_attention_heads": 2, "max_position_embeddings": LENGTH}
    return build(BertConfig(**sizes, **more), dtype=jnp.bfloat16), ("input_ids", "attention_mask"), None


@pytest.fixture
def hopper(monkeypatch):
    """As on an H100 with cuDNN 9.10; the programs are lowered, and not run."""
    monkeypatch.setattr(cudnn.cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn.cudnn, "check_compute_capability", lambda capability: True)


@pytest.mark.parametrize(("platform", "kernel"), [("cuda", "__cudnn$fmha"), ("tpu", "tpu_custom_call"), ("cpu", None)])
@pytest.mark.parametrize("made", [_llama, _bert], ids=["llama", "bert"])
def test_a_training_steps_program_calls_the_platforms_kernel(made, platform, kernel, hopper):
    """And on no platform it holds an array over all pairs of tokens."""
    model, names, method = made()
    base, batch = abstract_base(model), {name: jax.ShapeDtypeStruct((2, LENGTH), jnp.int32) for name in names}
    lora = jlora.LoraConfig(target_modules="all-linear", modules_to_save=[])

    def apply(base, batch):
        return model.apply(base, batch, method=method)

    adapter = abstract_adapter(lora, base, apply, batch)
    trained, frozen = jlora.split(adapter)

    def loss(trained, frozen, base, batch):
        return jlora.adapt(apply)(base, jlora.combine(trained, frozen), batch).astype(jnp.float32).sum()

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # as the trainer runs
        text = (
            jax.jit(jax.grad(loss)).trace(trained, frozen, base, batch).lower(lowering_platforms=(platform,)).as_text()
        )
    for name in ("__cudnn$fmha", "tpu_custom_call"):
        assert (name in text) == (name == kernel)
    assert f"{LENGTH}x{LENGTH}" not in text


@pytest.mark.parametrize("kernel", ["auto", "cudnn", "splash"])
def test_one_query_is_computed_whatever_kernel_a_run_names(kernel):
    """A decoding step of a model that was trained by a fused kernel, whose keys are those of a cache."""
    query, key, value = (x[:, :1] if i == 0 else x for i, x in enumerate(_inputs()))
    found, expected = (
        attention(query, key, value, Visibility(start=jnp.int32(3), causal=True, kernel=name))
        for name in (kernel, "full")
    )
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_obstacle_of_one_layer_is_that_of_the_model():
    query = _inputs()[0]
    with record_obstacles() as found:
        attention(query, query, query, Visibility(), dropout_key=jax.random.key(0), dropout_rate=0.1)
        attention(query, query, query, Visibility())
    assert "dropout" in found["splash"]


def test_a_kernel_that_there_is_not_is_refused():
    query = jnp.zeros((1, 4, 2, 8))
    with pytest.raises(JloraError, match=r"expected a kernel out of auto, .*; found 'cudn'"):
        attention(query, query, query, Visibility(kernel="cudn"))
