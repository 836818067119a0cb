"""Matrix products of bfloat16 that are fast on a CPU: summed in float32 and rounded once.

XLA uses a CPU's bfloat16 units only for products whose result is float32, and the cotangent of such a result is float32
too. So the result is rounded to bfloat16 here, and the cotangent is rounded before it is multiplied.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Dimensions = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]
"""`lax.dot_general`'s dimension_numbers: ((contracted, contracted), (batch, batch)) axes of (left, right) each."""

ROUNDED = "rounded_product"
"""The name of the jitted function; `jlora.adapt` recognizes such a product by it."""


def dot_general(left: jax.Array, right: jax.Array, dimensions: Dimensions, precision: Any = None) -> jax.Array:
    """Computes `lax.dot_general`; with two bfloat16 operands by `rounded_product`, which ignores `precision`.

    That product is bfloat16, summed in float32 and rounded once on a CPU. `dimensions` are the dimension_numbers:
    ((axes of left, axes of right) that are summed over, (axes of left, axes of right) of the batch).
    """
    if left.dtype != jnp.bfloat16 or right.dtype != jnp.bfloat16:
        return lax.dot_general(left, right, dimensions, precision=precision)
    (left_sums, right_sums), (left_batch, right_batch) = dimensions
    fixed = ((tuple(left_sums), tuple(right_sums)), (tuple(left_batch), tuple(right_batch)))
    return rounded_product(left, right, fixed)


def einsum(form: str, *arrays: jax.Array, **options: Any) -> jax.Array:
    """Computes `jnp.einsum` of arrays of one dtype; bfloat16 is computed in float32 and rounded once.

    `form` has one operand for each array; `options` are those of `jnp.einsum`. The result has the arrays' dtype.
    """
    dtype = arrays[0].dtype
    if dtype == jnp.bfloat16:
        arrays = tuple(array.astype(jnp.float32) for array in arrays)
    return jnp.einsum(form, *arrays, **options).astype(dtype)


@partial(jax.jit, static_argnums=2)
def rounded_product(left: jax.Array, right: jax.Array, dimensions: Dimensions) -> jax.Array:
    """Multiplies two bfloat16 arrays to a bfloat16 result; on a CPU it is summed in float32 and rounded once.

    `dimensions` are the dimension_numbers of `lax.dot_general`, as tuples, and the axes of the result are in its order.
    """
    return _product((dimensions, _letters(dimensions, left.ndim, right.ndim)), left, right)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(form: tuple[Dimensions, tuple[str, str, str]], left: jax.Array, right: jax.Array) -> jax.Array:
    (left_sums, _), (left_batch, _) = form[0]
    is_row = left.size == left.shape[-1] and left.ndim > 1 and left_sums == (left.ndim - 1,) and not left_batch

    def multiply(dtype: Any, left: jax.Array, right: jax.Array) -> jax.Array:
        if is_row and dtype == jnp.float32:  # XLA is slow for a single row: two rows take half the time
            left = jnp.concatenate([left, left])
        product = lax.dot_general(left, right, form[0], preferred_element_type=dtype).astype(left.dtype)
        return product[:1] if is_row else product

    return _by_platform(multiply, left, right)


def _forward(form: Any, left: Any, right: Any) -> tuple[jax.Array, tuple]:
    # An operand is kept only if the other one needs a gradient, which a frozen weight never does.
    kept = (left.value if right.perturbed else None, right.value if left.perturbed else None)
    return _product(form, left.value, right.value), kept


def _backward(form: Any, kept: tuple, slope: Any) -> tuple[jax.Array | None, jax.Array | None]:
    (left, right), (_, (of_left, of_right, of_result)) = kept, form
    if isinstance(slope, jax.custom_derivatives.SymbolicZero):
        return None, None
    return (
        None if right is None else _einsum(f"{of_result},{of_right}->{of_left}", slope, right),
        None if left is None else _einsum(f"{of_left},{of_result}->{of_right}", left, slope),
    )


_product.defvjp(_forward, _backward, symbolic_zeros=True)


def _einsum(form: str, one: jax.Array, other: jax.Array) -> jax.Array:
    def multiply(dtype: Any, one: jax.Array, other: jax.Array) -> jax.Array:
        return jnp.einsum(form, one, other, preferred_element_type=dtype).astype(one.dtype)

    return _by_platform(multiply, one, other)


def _by_platform(multiply: Any, *arrays: jax.Array) -> jax.Array:
    """Calls `multiply(dtype, *arrays)` with the dtype of the product: float32 on a CPU, bfloat16 elsewhere."""
    return lax.platform_dependent(*arrays, cpu=partial(multiply, jnp.float32), default=partial(multiply, jnp.bfloat16))


def _letters(dimensions: Dimensions, left_ndim: int, right_ndim: int) -> tuple[str, str, str]:
    """Returns an einsum's letters for the axes of left, right and the result."""
    (left_sums, right_sums), (left_batch, right_batch) = dimensions
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    left, right = list(letters[:left_ndim]), list(letters[left_ndim : left_ndim + right_ndim])
    for axis, same in zip((*left_sums, *left_batch), (*right_sums, *right_batch), strict=True):
        right[same] = left[axis]
    free = [letter for letter in left if letter not in right], [letter for letter in right if letter not in left]
    return "".join(left), "".join(right), "".join([left[axis] for axis in left_batch] + free[0] + free[1])
