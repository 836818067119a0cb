"""DoRA: the gain is that of the formed weight, the norm has no gradient, nothing changes at the start."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jlora
from jlora.algebra.merge import update
from jlora.lora.dora import gain, squared_norm, with_magnitude
from tests.support.adapters.lora_cases import low_rank, normal, random_adapter
from tests.support.models.encoder_cases import difference

CASES = {
    "a matrix": ("ra,rb->ab", (5, 3), (0,)),
    "a stack": ("arb,arc->abc", (4, 5, 3), (1,)),
    "several inputs": ("rab,rc->abc", (2, 5, 3), (0, 1)),
    "several outputs": ("ra,rbc->abc", (5, 2, 3), (0,)),
    "the inputs last": ("rb,ra->ab", (3, 5), (1,)),
}


def _entry(spec, shape):
    leaf = normal(3, *shape)
    entry = with_magnitude(low_rank(spec, shape), leaf)
    return dataclasses.replace(entry, magnitude=entry.magnitude * (1 + 0.1 * normal(4, *entry.magnitude.shape))), leaf


@pytest.mark.parametrize(("spec", "shape", "inputs"), CASES.values(), ids=CASES)
def test_the_gain_is_magnitude_over_the_norm_of_the_sum(spec, shape, inputs):
    entry, leaf = _entry(spec, shape)
    total = np.asarray(leaf, np.float64) + np.asarray(update(entry), np.float64)
    norms = np.sqrt((total**2).sum(inputs))
    assert difference(gain(entry, leaf), np.asarray(entry.magnitude) / norms) < 1e-5
    assert difference(squared_norm(entry, leaf), (np.asarray(leaf) ** 2).sum(inputs)) < 1e-6
    merged = jlora.merge({"w": leaf}, {"w": entry})["w"]
    assert difference(np.sqrt((np.asarray(merged) ** 2).sum(inputs)), entry.magnitude) < 1e-5


@pytest.mark.parametrize(("spec", "shape", "inputs"), CASES.values(), ids=CASES)
def test_unmerge_solves_for_the_base(spec, shape, inputs):
    entry, leaf = _entry(spec, shape)
    small = dataclasses.replace(entry, b=0.3 * entry.b)
    small = dataclasses.replace(with_magnitude(small, leaf), magnitude=entry.magnitude)
    adapter = {"w": small}
    assert difference(jlora.unmerge(jlora.merge({"w": leaf}, adapter), adapter)["w"], leaf) < 2e-6


def test_a_fresh_gain_is_one_to_the_bit():
    leaf = normal(3, 5, 3)
    entry = dataclasses.replace(low_rank("ra,rb->ab", (5, 3)), b=jnp.zeros((2, 3)))
    assert (gain(with_magnitude(entry, leaf), leaf) == 1).all()


def test_an_output_of_zeros_stays_one():
    """A weight that starts at zero: 0 / 0 would be NaN, in the function and in each gradient."""
    leaf = normal(3, 5, 3).at[:, 1].set(0)
    entry = with_magnitude(dataclasses.replace(low_rank("ra,rb->ab", (5, 3)), b=jnp.zeros((2, 3))), leaf)
    x = normal(5, 4, 5)

    def loss(entry):
        return jnp.sum(jlora.adapt(lambda w, x: x @ w["w"])({"w": leaf}, {"w": entry}, x) ** 2)

    value, gradient = jax.value_and_grad(loss)(entry)
    np.testing.assert_allclose(value, jnp.sum((x @ leaf) ** 2), rtol=1e-6)
    assert all(jnp.isfinite(part).all() for part in (gradient.a, gradient.b, gradient.magnitude))
    assert jnp.any(gradient.b[:, 0] != 0)


def test_the_norm_has_no_gradient_and_the_magnitude_has():
    entry, leaf = _entry("ra,rb->ab", (5, 3))
    x = normal(5, 4, 5)

    def fn(base, x):
        return jnp.tanh(x @ base["w"])

    def reference(a, b, magnitude):
        total = leaf + jnp.einsum("ra,rb->ab", a, b * entry.scale[:, None])
        norm = lax.stop_gradient(jnp.sqrt(jnp.sum(total**2, 0)))
        return jnp.sum(jnp.tanh(x @ (total * (magnitude / norm)[None])) ** 2)

    found = jax.grad(lambda adapter: jnp.sum(jlora.adapt(fn)({"w": leaf}, adapter, x) ** 2))({"w": entry})["w"]
    expected = jax.grad(reference, (0, 1, 2))(entry.a, entry.b, entry.magnitude)
    for name, value in zip(("a", "b", "magnitude"), expected, strict=True):
        assert difference(getattr(found, name), value) < 1e-5, name
    assert not found.squared_norm.any()


def test_a_layer_that_is_not_adapted_keeps_its_weight_whatever_its_magnitude():
    fn = lambda base, x: lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, base["net"]["layers"]["dense"])[0]  # noqa: E731
    base, x = {"net": {"layers": {"dense": normal(3, 3, 4, 4)}}}, normal(4, 2, 4)
    adapter = random_adapter(fn, base, x, targets=["dense"], layers_to_transform=[1], use_dora=True)
    entry = with_magnitude(adapter["net/layers/dense"], base["net"]["layers"]["dense"])
    adapter = {"net/layers/dense": dataclasses.replace(entry, magnitude=2 * entry.magnitude)}
    merged = jlora.merge(base, adapter)["net"]["layers"]["dense"]
    assert (merged[::2] == base["net"]["layers"]["dense"][::2]).all()
    assert difference(jlora.adapt(fn)(base, adapter, x), fn(jlora.merge(base, adapter), x)) < 1e-5


def test_a_tied_table_takes_its_gain_before_the_product():
    def tied(base, ids):
        return jnp.tanh(base["table"][ids]) @ base["table"].T

    base, ids = {"table": normal(3, 7, 4)}, jnp.array([[1, 4, 0]])
    adapter = random_adapter(tied, base, ids, targets=["table"], use_dora=True, ensure_weight_tying=True)
    adapter = {"table": with_magnitude(adapter["table"], base["table"])}
    adapter["table"] = dataclasses.replace(adapter["table"], magnitude=adapter["table"].magnitude * 1.3)
    assert difference(jlora.adapt(tied)(base, adapter, ids), tied(jlora.merge(base, adapter), ids)) < 1e-5
