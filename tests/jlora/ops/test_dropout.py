"""Dropout: unbiased, independent masks, the same mask forth and back, under every transformation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jlora.ops.dropout import dropout, hash_bits

ONES = jnp.ones((64, 1024))
KEY = jax.random.key(0)
JITTED = jax.jit(dropout, static_argnums=2)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_mean_scale_and_variance(rate):
    dropped = np.asarray(JITTED(KEY, ONES, rate), np.float64)
    assert set(np.unique(dropped)) == {0.0, np.float64(np.float32(1 / (1 - rate)))}
    deviation = np.sqrt(rate / (1 - rate))
    assert abs(dropped.mean() - 1) < 5 * deviation / np.sqrt(ONES.size)
    assert abs(dropped.std() / deviation - 1) < 0.02
    assert np.abs(dropped.mean(0) - 1).max() < 6 * deviation / np.sqrt(64)
    assert np.abs(dropped.mean(1) - 1).max() < 6 * deviation / np.sqrt(1024)


def test_neighbours_and_keys_are_independent():
    """Correlations of bits at several distances, and of masks of different keys, are those of chance."""
    masks = [np.asarray(JITTED(jax.random.key(seed), ONES, 0.5)).ravel() - 1 for seed in range(4)]
    pairs = [(masks[0][:-distance], masks[0][distance:]) for distance in (1, 2, 8, 64, 1024, 4096)]
    pairs += [(masks[i], masks[j]) for i in range(4) for j in range(i)]
    for left, right in pairs:
        assert abs(np.mean(left * right)) < 5 / np.sqrt(left.size)


@pytest.mark.parametrize("other", [(0x1234567, 0x9E3779B9), (0x85EBCA6B, 0xDEADBEEF)])
def test_either_word_of_a_key_changes_every_bit_of_the_hash(other):
    hashes = [
        np.asarray(hash_bits(jnp.array(words, jnp.uint32), jnp.arange(4096, dtype=jnp.uint32)))
        for words in ((0x1234567, 0xDEADBEEF), other)
    ]
    differing = np.unpackbits((hashes[0] ^ hashes[1]).view(np.uint8).reshape(-1, 4), axis=1)
    assert np.abs(differing.mean(0) - 0.5).max() < 0.1


def test_the_key_decides():
    assert (JITTED(KEY, ONES, 0.5) == JITTED(jax.random.key(0), ONES, 0.5)).all()
    assert (JITTED(KEY, ONES, 0.5) == dropout(jax.random.PRNGKey(0), ONES, 0.5)).all()
    assert (JITTED(KEY, ONES, 0.5) == dropout(KEY, ONES, 0.5)).all()
    assert (JITTED(KEY, ONES, 0.5) != dropout(jax.random.key(0, impl="rbg"), ONES, 0.5)).any()


def test_rate_0_is_the_identity():
    assert dropout(KEY, ONES, 0.0) is ONES


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_impossible_rates(rate):
    with pytest.raises(ValueError, match=rf"found {rate}"):
        dropout(KEY, ONES, rate)


@pytest.mark.parametrize("wrap", [lambda fn: fn, jax.jit, jax.checkpoint], ids=["plain", "jit", "checkpoint"])
def test_the_gradient_has_the_mask_of_the_value(wrap):
    x = jnp.linspace(1, 2, 200)
    fn = wrap(lambda x: dropout(KEY, x, 0.5))
    y, pullback = jax.vjp(fn, x)
    assert (pullback(jnp.ones_like(x))[0] == y / x).all()
    assert (jax.jvp(fn, (x,), (x,))[1] == y).all()


def test_no_mask_is_kept_for_the_backward_pass():
    x = jnp.ones((32, 32))
    _, pullback = jax.vjp(lambda x: dropout(KEY, x, 0.5), x)
    kept = [leaf for leaf in jax.tree.leaves(pullback) if hasattr(leaf, "size")]
    assert sum(leaf.size for leaf in kept) < 100


def test_vmap_over_keys_and_over_values():
    x = ONES[:3, :50]
    keys = jax.random.split(KEY, 3)
    each = jnp.stack([dropout(key, row, 0.5) for key, row in zip(keys, x, strict=True)])
    assert (jax.vmap(lambda key, row: dropout(key, row, 0.5))(keys, x) == each).all()
    assert (each[0] != each[1]).any()
    same = jax.vmap(lambda row: dropout(KEY, row, 0.5))(x)
    assert (same[0] == same[1]).all()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_shape_and_dtype_are_kept(shape, dtype):
    dropped = dropout(KEY, jnp.ones(shape, dtype), 0.5)
    assert dropped.shape == shape
    assert dropped.dtype == dtype
    assert set(np.unique(np.asarray(dropped, np.float32))) <= {0.0, 2.0}


def test_what_is_dropped_is_zero_whatever_it_was():
    x = jnp.full(1000, jnp.nan)
    assert 300 < int((dropout(KEY, x, 0.5) == 0).sum()) < 700
