"""A product whose derivative measures its input, for `second_moments`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from jlora.errors import JloraError
from jlora.transform.adapted_weight import Update


def tap(weight: Update, product: jax.Array, x: jax.Array, w_is_left: bool, params: dict) -> jax.Array:
    """Returns `product` unchanged, and makes the gradient of `weight.a` the second moments of x over the tokens.

    Args:
      weight: the update that `probed` makes; a is (in, *dims). Its gradient has x's features twice: on the first axis
        in the order of the leaf's own axes, and on the dims that are contracted. For a kernel (in, out): (in, in, 1).
      product: the dot_general of the weight and x.
      x: the other operand; all axes that are not contracted are tokens.
      w_is_left: whether the weight is the first operand.
      params: of the dot_general; `dimension_numbers` is read.

    Raises:
      JloraError: the product is batched, or contracts only a part of the leaf's axes.
    """
    assert weight.a is not None
    contract, batch = params["dimension_numbers"]
    w_contract, x_contract = contract if w_is_left else contract[::-1]
    width = math.prod(x.shape[dim] for dim in x_contract)
    if any(batch) or width != weight.a.shape[0]:
        raise JloraError(
            f"{weight.path}: expected a product over all input axes, without a batch of weights, to measure"
        )
    # Tokens (n, in) twice: in the order of the weight's dims here, and in that of the leaf's axes.
    places = range(len(w_contract))
    orders = sorted(places, key=lambda i: w_contract[i]), sorted(places, key=lambda i: weight.axes[w_contract[i]])
    here, leaf = (_tokens(x, [x_contract[i] for i in order]) for order in orders)
    return _tap(product, here, leaf, weight.a)


def _tokens(x: jax.Array, last: Sequence[int]) -> jax.Array:
    free = [dim for dim in range(x.ndim) if dim not in last]
    return lax.transpose(x, (*free, *last)).reshape(-1, math.prod(x.shape[dim] for dim in last))


@jax.custom_vjp
def _tap(product: jax.Array, here: jax.Array, leaf: jax.Array, a: jax.Array) -> jax.Array:
    return product


def _tap_forward(product: jax.Array, here: jax.Array, leaf: jax.Array, a: jax.Array) -> tuple:
    return product, (here, leaf, a)


def _tap_backward(kept: tuple, cotangent: jax.Array) -> tuple:
    here, leaf, a = kept
    moments = jnp.matmul(leaf.T.astype(a.dtype), here.astype(a.dtype), precision=lax.Precision.HIGHEST)
    return cotangent, jnp.zeros_like(here), jnp.zeros_like(leaf), moments.reshape(a.shape)


_tap.defvjp(_tap_forward, _tap_backward)
