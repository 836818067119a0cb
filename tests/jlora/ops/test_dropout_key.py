"""Keys of hashes: jax.random's functions take them, and no two children draw alike."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jlora.ops.dropout_key import hash_key


@pytest.fixture
def key():
    return hash_key(jax.random.key(0))


def test_any_generators_key_will_do():
    words = {str(jax.random.key_data(hash_key(jax.random.key(3, impl=name)))) for name in ("threefry2x32", "rbg")}
    assert len(words) == 2


def test_children_of_split_and_fold_in_are_all_different(key):
    children = [*jax.random.split(key, 500), *jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(500))]
    assert len({tuple(jax.random.key_data(child).tolist()) for child in [key, *children]}) == 1001


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
def test_bits_are_uniform(bits):
    """Both halves of a number: the low one of 64 bits is drawn apart from the high one."""
    with jax.enable_x64(bits == 64):
        drawn = jax.random.bits(hash_key(jax.random.key(0)), (40000,), f"uint{bits}")
        halves = np.asarray(drawn), np.asarray(drawn) & np.asarray(2 ** (bits // 2) - 1, drawn.dtype)
    for found, size in zip(halves, (bits, bits // 2), strict=True):
        share = (found.astype(np.float64) + 0.5) / 2.0**size
        np.testing.assert_allclose([share.mean(), share.var()], [1 / 2, 1 / 12], atol=0.01)


def test_draws_of_children_are_independent(key):
    """The counts of 1,000 draws at 0.1 vary over keys and over positions as independent ones do."""
    keys = jax.random.split(key, 1000)
    found = np.asarray(jax.vmap(lambda each: jax.random.bernoulli(each, 0.1, (1000,)))(keys), np.float64)
    expected = np.sqrt(0.1 * 0.9 / 1000)
    np.testing.assert_allclose([found.mean(1).std(), found.mean(0).std()], expected, rtol=0.1)
    correlation = np.corrcoef(found[:100])
    assert np.abs(correlation[np.triu_indices(100, 1)]).max() < 5 / np.sqrt(1000)


def test_inside_of_programs_they_are_the_same(key):
    def draws(key):
        return jax.lax.scan(
            lambda _, i: (None, jax.random.bits(jax.random.fold_in(key, i), (4,))), None, jnp.arange(3)
        )[1]

    np.testing.assert_array_equal(
        jax.jit(draws)(key), [jax.random.bits(jax.random.fold_in(key, i), (4,)) for i in range(3)]
    )


def test_they_bring_no_loop_into_a_program(key):
    """Threefry's on a CPU is one: what made steps with dropout slow to compile."""
    program = jax.jit(lambda key: jax.random.bits(jax.random.fold_in(jax.random.split(key)[0], 7), (2, 3)))
    assert "while" not in program.lower(key).compile().as_text()
