"""`LazyWeight`: a quantized weight that records the function's operations on it and is dequantized only when used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jlora.tree.quantized import Quantized, as_array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LazyWeight:
    """A placeholder for an array (*stack, *inner) that is dequantized each time that it is used.

    Attributes:
      leaf: the codes, with the stack's axes first. Operations that select layers are applied to the codes.
      inner: the shape of one layer of the array.
      dtype: of the array.
      moves: functions that are applied one after another to a dequantized layer of the leaf, to give `inner`.
    """

    leaf: Quantized
    inner: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})
    moves: tuple[Callable, ...] = dataclasses.field(default=(), metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return (*self.leaf.stack, *self.inner)

    @property
    def ndim(self) -> int:
        """The number of the array's axes."""
        return len(self.shape)


def defer(leaf: Any) -> Any:
    """Wraps a quantized leaf as LazyWeight; returns an array unchanged."""
    return LazyWeight(leaf, leaf.layer, leaf.dtype) if isinstance(leaf, Quantized) else leaf


def materialize(weight: Any) -> jax.Array:
    """Dequantizes a LazyWeight to an array; returns an array unchanged."""
    if not isinstance(weight, LazyWeight):
        return weight

    def move(layer: jax.Array) -> jax.Array:
        for step in weight.moves:
            layer = step(layer)
        return layer

    for _ in weight.leaf.stack:
        move = jax.vmap(move)
    return move(as_array(weight.leaf))


def apply_with_remat(fn: Callable, weight: Any, *others: Any) -> Any:
    """Calls `fn(weight, *others)`; the backward pass keeps a quantized weight's codes, not the dequantized array.

    `fn` gets an array in place of a LazyWeight; an array is passed on unchanged. The result is that of `fn`.
    """
    if not isinstance(weight, LazyWeight):
        return fn(weight, *others)
    return jax.checkpoint(lambda weight, *others: fn(materialize(weight), *others))(weight, *others)
