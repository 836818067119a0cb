"""A quantized weight as the function sees it: moved as the function moves it, dequantized where it is used."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from jlora.tree.quantized import Quantized, as_array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Deferred:
    """Stands for an array (*stack, *inner) that is formed wherever it is used, and nowhere else.

    Attributes:
      leaf: the codes, whose stack leads; what takes layers from the array takes them from the codes.
      inner: the shape of one layer of the array.
      dtype: of the array.
      moves: what makes `inner` from a layer of the leaf, one after the other.
    """

    leaf: Quantized
    inner: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: Any = dataclasses.field(metadata={"static": True})
    moves: tuple[Callable, ...] = dataclasses.field(default=(), metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's."""
        return (*self.leaf.stack, *self.inner)

    @property
    def ndim(self) -> int:
        """The number of the array's axes."""
        return len(self.shape)


def deferred(leaf: Any) -> Any:
    """A quantized leaf as Deferred; an array as it is."""
    return Deferred(leaf, leaf.layer, leaf.dtype) if isinstance(leaf, Quantized) else leaf


def formed(weight: Any) -> jax.Array:
    """The array that a Deferred stands for; an array as it is."""
    if not isinstance(weight, Deferred):
        return weight

    def move(layer: jax.Array) -> jax.Array:
        for step in weight.moves:
            layer = step(layer)
        return layer

    for _ in weight.leaf.stack:
        move = jax.vmap(move)
    return move(as_array(weight.leaf))


def used(fn: Callable, weight: Any, *others: Any) -> Any:
    """`fn(weight, *others)`; of a quantized weight the codes are kept for the backward pass, not what is formed."""
    if not isinstance(weight, Deferred):
        return fn(weight, *others)
    return jax.checkpoint(lambda weight, *others: fn(formed(weight), *others))(weight, *others)
