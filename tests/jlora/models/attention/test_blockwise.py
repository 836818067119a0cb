"""Attention by blocks equals the full formula: values, slopes and dropped probabilities, whatever may be seen."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jlora.models.attention import blockwise
from jlora.models.attention.attention import attention
from jlora.models.attention.visibility import Visibility

TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 8 to 16 tokens, so that short rows have many."""
    monkeypatch.setattr(blockwise, "_FEWEST", (8, 8))
    monkeypatch.setattr(blockwise, "_MOST", (16, 16))


@st.composite
def calls(draw):
    """(arrays of a call, options, Visibility without its kernel)."""
    batch, key_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 3))
    length, width = draw(st.integers(1, 40)), draw(st.sampled_from([4, 8]))
    cached = draw(st.booleans())
    slots = length + draw(st.integers(0, 20)) if cached else length
    key = jax.random.key(draw(st.integers(0, 2**20)))
    q, k, v, w, b = jax.random.split(key, 5)
    heads = key_heads * group
    arrays = {
        "query": jax.random.normal(q, (batch, length, heads, width)),
        "key": jax.random.normal(k, (batch, slots, key_heads, width)),
        "value": jax.random.normal(v, (batch, slots, key_heads, width)),
        "key_bias": jax.random.normal(b, (batch, heads, slots)) if draw(st.booleans()) else None,
    }
    rate = draw(st.sampled_from([0.0, 0.3]))
    options = {
        "scale": draw(st.sampled_from([None, 0.4])),
        "softcap": draw(st.sampled_from([None, 2.0])),
        "dropout_key": w if rate else None,
        "dropout_rate": rate,
    }
    causal = cached or draw(st.booleans())
    window = draw(st.sampled_from([None, 1, 5, 30])) if causal else None
    start = jnp.int32(draw(st.integers(0, slots - length))) if cached else None
    return arrays, options, Visibility(*draw(segments(batch, length, slots)), start, causal=causal, window=window)


@st.composite
def segments(draw, batch, length, slots):
    """None; or row lengths, 0 among them; or packed texts with padding behind them."""
    kind = draw(st.sampled_from(["none", "lengths", "packed"]))
    if kind == "none":
        return None, None
    if kind == "packed" and slots == length:
        starts = np.array([[draw(st.booleans()) for _ in range(length)] for _ in range(batch)])
        own = np.cumsum(starts, axis=1)
        padded = np.arange(length)[None] >= length - draw(st.integers(0, 5))
        return jnp.array(own, jnp.int32), jnp.array(np.where(padded, -1, own), jnp.int32)
    lengths = np.array([draw(st.integers(0, slots)) for _ in range(batch)])
    keys = np.where(np.arange(slots)[None] < lengths[:, None], 0, -1)
    return jnp.zeros((batch, length), jnp.int32), jnp.array(keys, jnp.int32)


def _results(kernel, arrays, options, visibility, dtype):
    """(values, {name: slope}) in float32."""
    cast = {name: x if x is None or name == "key_bias" else x.astype(dtype) for name, x in arrays.items()}
    seen = Visibility(**{**vars(visibility), "kernel": kernel})
    weights = jax.random.normal(jax.random.key(7), arrays["query"].shape)

    def loss(given):
        found = attention(given["query"], given["key"], given["value"], seen, key_bias=given["key_bias"], **options)
        return (found.astype(jnp.float32) * weights).sum(), found

    slopes, found = jax.jit(jax.grad(loss, has_aux=True))(cast)
    return jax.tree.map(lambda x: np.float32(x), (found, slopes))


def _differences(found, expected):
    """(the largest difference, the largest expected number) of each array."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return np.array([[np.abs(x - y).max(), np.abs(y).max()] for x, y in pairs], np.float64)


def _difference(found, expected):
    """The largest one of all numbers, as a share of its array's largest where that is above 1."""
    return max(difference / max(1.0, largest) for difference, largest in _differences(found, expected))


@given(calls())
@settings(max_examples=24)
def test_float32_is_the_full_formula(call):
    expected, found = (_results(kernel, *call, jnp.float32) for kernel in ("full", "blockwise"))
    assert _difference(found, expected) <= TOLERANCE[jnp.float32]


@given(calls())
@settings(max_examples=8)
def test_bfloat16_is_the_full_formula_in_float32(call):
    """Of the same numbers, rounded to bfloat16 before both.

    A slope of a query or a key is what is left of larger numbers that cancel (none at all where a query sees one key),
    and the output among them was rounded: its error is a share of the call's largest number, not of its own.
    """
    arrays, options, visibility = call
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), arrays)
    expected = _results("full", rounded, options, visibility, jnp.float32)
    found = _results("blockwise", rounded, options, visibility, jnp.bfloat16)
    differences, largest = _differences(found, expected).max(axis=0)
    assert differences <= TOLERANCE[jnp.bfloat16] * max(1.0, largest)


def test_a_bias_as_large_as_alibis_is_no_trouble_for_rows_that_fill_the_last_block_up():
    """exp(bias) of a row that is not there is infinite; times a slope of zero it was no number."""
    query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 20, 2, 4))
    bias = jnp.broadcast_to(jnp.arange(20.0) * 16, (1, 2, 20))
    call = ({"query": query, "key": key, "value": value, "key_bias": bias}, {}, Visibility(causal=True))
    expected, found = (_results(kernel, *call, jnp.float32) for kernel in ("full", "blockwise"))
    assert _difference(found, expected) <= TOLERANCE[jnp.float32]


def test_blocks_that_nobody_sees_are_not_formed():
    """Half of the pairs of a causal row; two for each block of a short window."""
    query = jnp.zeros((1, 160, 1, 4))

    def products(**conditions):
        fn = lambda x: attention(x, x, x, Visibility(**conditions, kernel="blockwise"))  # noqa: E731
        (loop,) = [eqn for eqn in jax.make_jaxpr(fn)(query).jaxpr.eqns if eqn.primitive.name == "custom_vjp_call"]
        (scan,) = [eqn for eqn in loop.params["call_jaxpr"].jaxpr.eqns if eqn.primitive.name == "scan"]
        return scan.params["length"]

    assert products() == 100
    assert products(causal=True) == 55
    assert products(causal=True, window=8) == 19


def test_temporaries_grow_with_the_tokens():
    """The exponent of a step's temporary memory over 1k to 8k tokens is 1, at the sizes that users train with."""
    blockwise._FEWEST, blockwise._MOST = (64, 128), (256, 256)

    def loss(query, key):
        return attention(query, key, key, Visibility(causal=True)).sum()

    def temporaries(length):
        shapes = [jax.ShapeDtypeStruct((1, length, heads, 16), jnp.float32) for heads in (4, 2)]
        return jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    lengths = np.array([1024, 2048, 4096, 8192])
    exponent = np.polyfit(np.log(lengths), np.log([temporaries(length) for length in lengths]), 1)[0]
    assert exponent < 1.05


def test_temporaries_of_layers_grow_with_the_tokens():
    """A loop over layers, each computed again for its gradient, keeps nothing for pairs of blocks: 36 at 8 blocks."""
    blockwise._FEWEST, blockwise._MOST = (64, 64), (64, 64)

    def loss(x, numbers):
        seen = Visibility(numbers, numbers, causal=True)

        @jax.checkpoint
        def layer(x, scale):
            return attention(x * scale, x, x, seen), None

        return jax.lax.scan(layer, x, jnp.ones(4))[0].sum()

    def temporaries(length):
        shapes = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32), jax.ShapeDtypeStruct((1, length), jnp.int32)
        return jax.jit(jax.grad(loss)).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    lengths = np.array([512, 1024, 2048])
    exponent = np.polyfit(np.log(lengths), np.log([temporaries(length) for length in lengths]), 1)[0]
    assert exponent < 1.05


def test_vmap_over_adapters_is_a_loop_over_them():
    keys = jax.random.normal(jax.random.key(0), (3, 1, 20, 2, 4))
    seen = Visibility(jnp.zeros((1, 20), jnp.int32), jnp.zeros((1, 20), jnp.int32), causal=True)
    fn = jax.grad(lambda x: attention(x, x, x, seen).sum())
    np.testing.assert_allclose(jax.vmap(fn)(keys), jnp.stack([fn(x) for x in keys]), atol=1e-5)
