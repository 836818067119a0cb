"""Layers of alternating kinds run in their order, each with its own parameters and slots, in a scan over the period."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jlora.models.blocks.layer_pattern import apply_layers, shortest_period


@pytest.mark.parametrize(
    ("types", "period"), [("a", 1), ("aaaa", 1), ("ab", 2), ("abaab", 3), ("lllllglllllgll", 6), ("aab", 3)]
)
def test_the_shortest_period(types, period):
    assert shortest_period(types) == period


class Layer(nn.Module):
    """x -> tanh(x @ kernel) times the factor of its type; its slot counts one up."""

    width: int
    layer_type: str

    @nn.compact
    def __call__(self, x, shared, slots):
        kernel = self.param("kernel", nn.initializers.normal(1.0), (self.width, self.width))
        return jnp.tanh(x @ kernel) * shared[self.layer_type], None if slots is None else slots + shared["step"]


class Model(nn.Module):
    types: str
    remat: bool = False

    @nn.compact
    def __call__(self, x, slots=None):
        shared = {"a": jnp.float32(1.0), "b": jnp.float32(-2.0), "step": jnp.float32(0.5)}
        return apply_layers(Layer, (3,), self.types, "layers", x, shared, slots, remat=self.remat)


X = jnp.array([[0.3, -0.5, 1.0]])


@pytest.mark.parametrize(
    ("types", "where"),
    [
        ("aaa", [("layers", i) for i in range(3)]),
        ("abab", [(f"layers_{i % 2}_of_2", i // 2) for i in range(4)]),
        ("aabaabaa", [*((f"layers_{i % 3}_of_3", i // 3) for i in range(6)), ("layers_6", None), ("layers_7", None)]),
    ],
)
def test_layers_run_in_their_order(types, where):
    model = Model(types)
    base = model.init(jax.random.key(0), X)
    kernels = [leaf["kernel"] if place is None else leaf["kernel"][place] for leaf, place in _leaves(base, where)]
    assert len({float(kernel.sum()) for kernel in kernels}) == len(types)
    expected = X
    for kernel, layer_type in zip(kernels, types, strict=True):
        expected = jnp.tanh(expected @ kernel) * (1.0 if layer_type == "a" else -2.0)
    slots = jnp.arange(2.0 * len(types)).reshape(len(types), 2)
    found, written = model.apply(base, X, slots)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(written, slots + 0.5)
    without, none = model.apply(base, X)
    np.testing.assert_allclose(without, expected, rtol=1e-5)
    assert none is None
    remat = jax.grad(lambda base: Model(types, remat=True).apply(base, X)[0].sum())(base)
    plain = jax.grad(lambda base: model.apply(base, X)[0].sum())(base)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), remat, plain)


def _leaves(base, where):
    names = {name for name, _ in where}
    assert base["params"].keys() == names
    return [(base["params"][name], place) for name, place in where]


def test_what_is_compiled_grows_with_the_period_alone():
    def products(types):
        model = Model(types)
        base = jax.eval_shape(lambda: model.init(jax.random.key(0), X))
        return len(re.findall("dot_general", str(jax.make_jaxpr(model.apply)(base, X))))

    assert products("ab" * 2) == products("ab" * 9) == 2
    assert products("aab" * 5 + "aa") == 5
