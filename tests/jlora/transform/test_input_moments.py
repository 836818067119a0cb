"""Second moments: x x^T of what each weight is multiplied with, in any surroundings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jlora
from jlora.transform.input_moments import second_moments
from tests.support.adapters.lora_cases import normal, random_adapter
from tests.support.models.encoder_cases import difference


def test_of_a_chain_and_of_two_uses():
    def fn(base, x):
        return jnp.tanh(x @ base["w"]) @ base["w"].T @ base["v"].T

    base, x = {"w": normal(1, 5, 3), "v": normal(2, 4, 5)}, normal(3, 2, 6, 5)
    adapter = random_adapter(fn, base, x, targets=["v"])
    found = second_moments(fn, base, adapter, x)
    inputs = (jnp.tanh(x @ base["w"]) @ base["w"].T).reshape(-1, 5)
    assert found.keys() == {"v"}
    assert difference(found["v"], inputs.T @ inputs) < 1e-5


def test_of_layers_in_a_scan_under_checkpoint():
    @jax.checkpoint
    def layer(x, w):
        return jnp.tanh(x @ w)

    def fn(base, x):
        return lax.scan(lambda x, w: (layer(x, w), None), x, base["layers"])[0]

    base, x = {"layers": normal(1, 3, 4, 4)}, normal(3, 6, 4)
    found = jax.jit(lambda x: second_moments(fn, base, random_adapter(fn, base, x, targets=["layers"]), x))(x)["layers"]
    for i in range(3):
        assert difference(found[i], x.T @ x) < 1e-5
        x = layer(x, base["layers"][i])


def test_of_several_input_axes_in_the_leafs_order():
    def fn(base, x):  # the weight is (heads, width, out); its axes are swapped on the way
        return jnp.einsum("twh,who->to", x, jnp.swapaxes(base["w"], 0, 1))

    base, x = {"w": normal(1, 2, 3, 5)}, normal(3, 6, 3, 2)
    found = second_moments(fn, base, random_adapter(fn, base, x, targets=["w"]), x)["w"]
    inputs = jnp.swapaxes(x, 1, 2).reshape(6, 6)
    assert difference(found, inputs.T @ inputs) < 1e-5


def test_a_part_of_the_inputs_is_refused():
    fn = lambda base, x: x[:, 1:3] @ base["w"][1:3]  # noqa: E731
    base, x = {"w": normal(1, 5, 3)}, normal(3, 6, 5)
    with pytest.raises(jlora.JloraError, match=r"^w: expected a product over all input axes"):
        second_moments(fn, base, random_adapter(fn, base, x, targets=["w"]), x)
