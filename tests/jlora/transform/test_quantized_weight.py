"""A quantized weight is dequantized where it is used, and once more in the backward pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jlora.quantization.encode import quantize_leaf
from jlora.transform.quantized_weight import apply_with_remat, defer, materialize
from tests.support.adapters.lora_cases import normal
from tests.support.models.encoder_cases import difference


def test_a_use_keeps_the_codes_alone_for_the_backward_pass():
    x = normal(1, 5, 6)
    weight = defer(quantize_leaf(normal(0, 6, 8), "int8"))

    def product(x):
        return apply_with_remat(lambda w, x: x @ w, weight, x)

    _, backward = jax.vjp(product, x)
    kept = [leaf.shape for leaf in jax.tree.leaves(backward) if leaf.dtype == jnp.float32]
    assert (6, 8) not in kept
    assert (8, 6) not in kept
    (gradient,) = backward(jnp.ones((5, 8)))
    assert difference(gradient, jnp.ones((5, 8)) @ materialize(weight).T) < 1e-6
    assert apply_with_remat(lambda w: w + 1, jnp.ones(3)).sum() == 6  # an array is used as it is
