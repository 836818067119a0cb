"""A product of bfloat16 is `lax.dot_general`'s, in both directions; of what is frozen nothing is kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jlora.ops.products import dot_general

CASES = [
    ((4, 6), (6, 3), (((1,), (0,)), ((), ()))),
    ((2, 4, 6), (3, 6), (((2,), (1,)), ((), ()))),
    ((6, 2, 4), (3, 6, 2), (((0,), (1,)), ((1,), (2,)))),
    ((2, 3, 4, 5), (3, 5, 2, 7), (((3,), (1,)), ((1, 0), (0, 2)))),
    ((1, 1, 6), (6, 3), (((2,), (0,)), ((), ()))),
    ((4, 6, 5), (5, 6), (((1, 2), (1, 0)), ((), ()))),
]


@pytest.mark.parametrize(("left", "right", "dimensions"), CASES)
def test_values_and_slopes_are_those_of_float32_rounded_once(left, right, dimensions):
    x, y = (jax.random.normal(jax.random.key(i), shape, jnp.bfloat16) for i, shape in enumerate((left, right)))

    def plain(x, y):
        return lax.dot_general(x.astype(jnp.float32), y.astype(jnp.float32), dimensions)

    expected, plain_slopes = jax.vjp(plain, x, y)
    found, slopes = jax.vjp(lambda x, y: dot_general(x, y, dimensions), x, y)
    slope = jax.random.normal(jax.random.key(2), found.shape, jnp.bfloat16)
    pairs = zip((found, *slopes(slope)), (expected, *plain_slopes(slope.astype(jnp.float32))), strict=True)
    for one, other in pairs:
        assert one.dtype == jnp.bfloat16
        np.testing.assert_array_equal(np.float32(one), np.float32(other.astype(jnp.bfloat16)))


def test_float32_is_left_as_it_is():
    x = jnp.ones((2, 3))
    jaxpr = jax.make_jaxpr(lambda x: dot_general(x, x, (((1,), (1,)), ((), ()))))(x)
    assert [eqn.primitive.name for eqn in jaxpr.eqns] == ["dot_general"]


def _backward(fn, *arrays):
    """The StableHLO of the slopes of `fn`'s sum, on a CPU."""
    return jax.jit(jax.grad(lambda *x: fn(*x).astype(jnp.float32).sum())).lower(*arrays).as_text()


def test_a_cpu_sums_in_float32_and_multiplies_rounded_numbers():
    x, w = jnp.ones((8, 16), jnp.bfloat16), jnp.ones((16, 4), jnp.bfloat16)
    products = [
        line for line in _backward(lambda x: dot_general(x, w, CASES[0][2]), x).split("\n") if "dot_general" in line
    ]
    assert products
    for line in products:
        operands, result = line.split(" : ")[-1].split(" -> ")
        assert operands.count("bf16") == 2
        assert "f32" in result


def test_nothing_is_kept_for_the_slope_of_a_frozen_weight():
    x, w = jnp.ones((8, 16), jnp.bfloat16), jnp.ones((16, 4), jnp.bfloat16)
    kept = jax.tree.leaves(jax.vjp(lambda x: dot_general(x, w, CASES[0][2]), x)[1])
    assert {leaf.shape for leaf in kept} <= {w.shape}
