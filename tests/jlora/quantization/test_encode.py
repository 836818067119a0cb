"""One weight as a leaf: in the checkpoint's layout, layer by layer, and safe to slice and to stack."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.quantization import nf4
from jlora.quantization.encode import quantize_leaf, quantize_like
from jlora.tree.quantized import as_array
from tests.support.adapters.lora_cases import normal
from tests.support.models.encoder_cases import difference

KINDS = ["nf4", "int8"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kernel_is_stored_as_the_checkpoints_tensor(kind):
    kernel = normal(0, 96, 40)
    leaf = quantize_leaf(kernel, kind)
    tensor = quantize_leaf(kernel.T, kind, inputs=(1,))  # (outputs, inputs)
    assert jax.tree.all(jax.tree.map(lambda x, y: (x == y).all(), leaf.stored, tensor.stored))
    assert difference(as_array(leaf), as_array(tensor).T) == 0
    assert (leaf.shape, leaf.ndim, leaf.dtype) == ((96, 40), 2, np.float32)
    if kind == "nf4":
        assert (leaf.stored.codes == nf4.encode(kernel.T.reshape(-1)).codes).all()
    else:
        assert (leaf.stored.scales == jnp.abs(kernel).max(0)).all()  # one for each output


@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_goes_layer_by_layer(kind):
    stack = normal(0, 3, 32, 20) * jnp.array([1.0, 10.0, 0.1])[:, None, None]
    leaf = quantize_leaf(stack, kind)
    layers = [quantize_leaf(layer, kind) for layer in stack]
    together = jax.tree.map(lambda *parts: jnp.stack(parts), *layers)  # as a loader does that reads layers
    assert jax.tree.structure(leaf) == jax.tree.structure(together)
    for found, expected in zip(jax.tree.leaves(leaf), jax.tree.leaves(together), strict=True):
        assert difference(found, expected) < 1e-6
    second = jax.tree.map(lambda part: part[1], leaf)
    assert second.shape == (32, 20)
    assert difference(as_array(second), as_array(leaf)[1]) < 1e-6


def test_axes_of_any_order_and_number():
    kernel = normal(0, 2, 8, 4, 16)  # (layers, heads, width, out)
    leaf = quantize_leaf(kernel, "int8", inputs=(0, 1), stack=1)
    assert leaf.stored.codes.shape == (2, 16, 32)
    assert leaf.shape == kernel.shape
    assert difference(as_array(leaf), kernel) < 0.01


@pytest.mark.parametrize(("kind", "error"), [("nf4", 0.095), ("int8", 0.008)])
def test_the_error_on_normal_weights(kind, error):
    kernel = normal(1, 512, 256)
    found = jnp.linalg.norm(as_array(quantize_leaf(kernel, kind)) - kernel) / jnp.linalg.norm(kernel)
    assert 0.7 * error < found < error


def test_a_dtype_is_kept_and_may_be_chosen():
    leaf = quantize_leaf(normal(0, 64, 8).astype(jnp.bfloat16), "nf4")
    assert as_array(leaf).dtype == jnp.bfloat16
    assert as_array(leaf, jnp.float32).dtype == jnp.float32
    assert as_array(jnp.ones(3)).dtype == jnp.float32


def test_quantize_like_is_the_same_way_of_storing():
    leaf = quantize_leaf(normal(0, 2, 64, 8), "int8")
    again = quantize_like(leaf, normal(0, 2, 64, 8))
    assert jax.tree.all(jax.tree.map(lambda x, y: (x == y).all(), leaf, again))


def test_numpy_and_tracers_will_do():
    kernel = np.asarray(normal(0, 64, 8))
    traced = jax.jit(lambda kernel: quantize_leaf(kernel, "nf4"))(kernel)
    assert difference(as_array(quantize_leaf(kernel, "nf4")), as_array(traced)) < 1e-6


@pytest.mark.parametrize(
    ("leaf", "kind", "message"),
    [
        (np.ones((4, 4), np.float32), "int4", "expected nf4 or int8, found 'int4'"),
        (np.ones(4, np.float32), "nf4", r"two axes or more.*float32 of shape \(4,\)"),
        (np.ones((4, 4), np.int32), "nf4", "floating point, found int32"),
        (np.full((4, 4), np.nan, np.float32), "int8", "found NaN or infinity"),
    ],
)
def test_what_cannot_be_quantized_is_refused(leaf, kind, message):
    with pytest.raises(jlora.JloraError, match=message):
        quantize_leaf(leaf, kind)
