"""A quantized weight as a leaf of a tree of parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np

Kind = Literal["nf4", "int8"]
"""How a weight is stored: in 4 bits (QLoRA's) or in 8 (LLM.int8's)."""


class Codes(Protocol):
    """The codes and scales of a weight, a tuple of arrays; `jlora.quantization` has a class for each Kind."""

    @property
    def stack(self) -> tuple[int, ...]:
        """The sizes of the axes that lead in each of the arrays."""

    def numbers(self, rows: int, columns: int) -> jax.Array:
        """What they stand for, as many numbers in all as stacked matrices (rows, columns) have, float32."""

    def shardings(self, fit: Callable[[Any, Any], Any], stack: tuple[Any, ...], row: Any, column: Any) -> Self:
        """`fit(names, shape)` of each array, for a weight whose axes are split over these axes of a mesh."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """Stands in a tree where a weight stood.

    A weight of a matrix product is stored as a checkpoint's Linear has it, (outputs, inputs), each layer of a stack by
    itself. Leading axes that its arrays gain or lose together, by scan, vmap or `tree.map`, are axes of the stack.

    Attributes:
      stored: the codes and their scales.
      layer: the shape of one layer of the weight.
      inputs: the axes of one layer that come last in the stored order.
      dtype: of the weight.
    """

    stored: Codes
    layer: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    inputs: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: np.dtype = dataclasses.field(metadata={"static": True})

    @property
    def stack(self) -> tuple[int, ...]:
        """The sizes of the stack's axes, which lead; () where there are none."""
        return self.stored.stack

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's."""
        return (*self.stack, *self.layer)

    @property
    def ndim(self) -> int:
        """The number of the weight's axes."""
        return len(self.shape)


def is_quantized(leaf: Any) -> bool:
    """Whether this is a Quantized: what keeps `jax.tree.map` and its like from looking into one."""
    return isinstance(leaf, Quantized)


def stored_order(layer: tuple[int, ...], inputs: tuple[int, ...]) -> list[int]:
    """The axes of a layer as they are stored: outputs, inputs."""
    return [axis for axis in range(len(layer)) if axis not in inputs] + list(inputs)


def as_array(leaf: Any, dtype: Any = None) -> jax.Array:
    """A leaf as an array of `dtype` (None is its own): what a Quantized stands for, an array as it is."""
    dtype = leaf.dtype if dtype is None else dtype
    if not isinstance(leaf, Quantized):
        return leaf.astype(dtype)
    order = stored_order(leaf.layer, leaf.inputs)
    columns = math.prod(leaf.layer[axis] for axis in leaf.inputs)
    numbers = leaf.stored.numbers(math.prod(leaf.layer) // columns, columns)
    numbers = numbers.reshape(*leaf.stack, *(leaf.layer[axis] for axis in order))
    stack = len(leaf.stack)
    back = [*range(stack), *(stack + order.index(axis) for axis in range(len(order)))]
    return jnp.transpose(numbers, back).astype(dtype)
