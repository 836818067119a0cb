"""Attention is `jax.nn.dot_product_attention` where nothing is dropped."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jlora.models.attention import attention

MASK = (np.arange(6)[None, :] < np.array([6, 4, 1])[:, None])[:, None, None, :]


def _inputs(dtype=jnp.float32) -> tuple:
    return tuple(jax.random.normal(key, (3, 6, 2, 8), dtype) for key in jax.random.split(jax.random.key(0), 3))


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("heads", [2, 6])
def test_it_equals_jaxs(heads, dtype, tolerance):
    """Values and gradients, with as many queries as keys and with three that share one; a bias and a scale."""
    _, key, value = _inputs(dtype)
    query, weights = (jax.random.normal(jax.random.key(i), (3, 6, heads, 8), dtype) for i in (1, 2))
    bias = jax.random.normal(jax.random.key(3), (3, heads, 1, 6))

    def loss(fn, *inputs):
        return (fn(*inputs).astype(jnp.float32) * weights.astype(jnp.float32)).sum()

    def ours(*inputs):
        return attention(*inputs, MASK, scale=0.3, bias=bias)

    def jaxs(*inputs):
        return jax.nn.dot_product_attention(*inputs, mask=MASK, scale=0.3, bias=bias)

    with jax.numpy_dtype_promotion("standard"):  # JAX's own promotes bfloat16 implicitly
        expected, found = jaxs(query, key, value), ours(query, key, value)
        slopes = [jax.grad(loss, (1, 2, 3))(fn, query, key, value) for fn in (ours, jaxs)]
    assert found.dtype == expected.dtype == dtype
    np.testing.assert_allclose(np.float32(found), np.float32(expected), atol=tolerance)
    for one, other in zip(*slopes, strict=True):
        np.testing.assert_allclose(np.float32(one), np.float32(other), atol=8 * tolerance)


@pytest.mark.parametrize("dropout", [{}, {"dropout_key": jax.random.key(3), "dropout_rate": 0.4}])
def test_masked_tokens_have_no_influence(dropout):
    query, key, value = _inputs()
    masked = ~MASK[:, 0, 0, :, None, None]
    changed = attention(query, key + 9.0 * masked, value - 7.0 * masked, MASK, **dropout)
    np.testing.assert_array_equal(attention(query, key, value, MASK, **dropout), changed)


def test_dropout_drops_at_its_rate_and_keeps_the_mean():
    """With value = identity the output is the probabilities themselves."""
    size = 64
    query = key = jnp.zeros((1, size, 1, size))
    value = jnp.eye(size)[None, :, None, :]
    mask = jnp.ones((1, 1, 1, size), bool)
    found = attention(query, key, value, mask, dropout_key=jax.random.key(0), dropout_rate=0.25) * size
    assert set(np.unique(np.round(np.asarray(found), 4))) == {0.0, np.float32(1.3333)}
    assert abs(float((found == 0).mean()) - 0.25) < 0.03
    again = attention(query, key, value, mask, dropout_key=jax.random.key(1), dropout_rate=0.25) * size
    assert abs(float(((found == 0) & (again == 0)).mean()) - 0.0625) < 0.02


def test_no_key_or_no_rate_is_evaluation():
    inputs = _inputs()
    expected = attention(*inputs, MASK)
    for options in ({"dropout_rate": 0.5}, {"dropout_key": jax.random.key(0)}):
        np.testing.assert_array_equal(attention(*inputs, MASK, **options), expected)
