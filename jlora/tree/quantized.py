"""`Quantized`: a quantized weight as a leaf of a parameter tree."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np

QuantizationKind = Literal["nf4", "int8"]
"""How a weight is stored: in 4 bits (as in QLoRA) or in 8 bits (as in LLM.int8)."""


class Codes(Protocol):
    """The codes and scales of a weight, a tuple of arrays; `jlora.quantization` has a class for each Kind."""

    @property
    def stack(self) -> tuple[int, ...]:
        """The sizes of the leading axes that all arrays share."""

    def numbers(self, rows: int, columns: int) -> jax.Array:
        """Dequantizes to float32: as many numbers in all as stacked matrices (rows, columns) have."""

    def shardings(self, fit: Callable[[Any, Any], Any], stack: tuple[Any, ...], row: Any, column: Any) -> Self:
        """Returns `fit(names, shape)` for each array, for a weight whose axes are split over these mesh axes."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """A leaf that replaces a dense weight in a tree; `jlora.quantize` makes it, and `as_array` converts it back.

    A weight of a matrix product is stored in the layout of a checkpoint's Linear, (outputs, inputs), each layer of a
    stack on its own. Leading axes that scan, vmap or `tree.map` add to or remove from all its arrays are axes of the
    stack.

    Attributes:
      stored: the codes and their scales, an `NF4` or `Int8`; both have `stack`, the sizes of the stack's axes.
      layer: the shape of one layer of the weight.
      inputs: the input axes of one layer, which come last in the stored order.
      dtype: of the weight.
    """

    stored: Codes
    layer: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    inputs: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: np.dtype = dataclasses.field(metadata={"static": True})

    @property
    def stack(self) -> tuple[int, ...]:
        """The sizes of the stack's axes, which come first; () if there are none."""
        return self.stored.stack

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return (*self.stack, *self.layer)

    @property
    def ndim(self) -> int:
        """The number of the weight's axes."""
        return len(self.shape)


def is_quantized(leaf: Any) -> bool:
    """Returns whether this is a Quantized; as `is_leaf` it keeps `jax.tree.map` from descending into one."""
    return isinstance(leaf, Quantized)


def storage_order(layer: tuple[int, ...], inputs: tuple[int, ...]) -> list[int]:
    """Returns the axes of a layer in the stored order: outputs, inputs. `((4, 6), (0,))` gives [1, 0]."""
    return [axis for axis in range(len(layer)) if axis not in inputs] + list(inputs)


def as_array(leaf: Any, dtype: Any = None) -> jax.Array:
    """Converts a leaf to an array of `dtype` (None means its own), and dequantizes it if it is Quantized."""
    dtype = leaf.dtype if dtype is None else dtype
    if not isinstance(leaf, Quantized):
        return leaf.astype(dtype)
    order = storage_order(leaf.layer, leaf.inputs)
    columns = math.prod(leaf.layer[axis] for axis in leaf.inputs)
    numbers = leaf.stored.numbers(math.prod(leaf.layer) // columns, columns)
    numbers = numbers.reshape(*leaf.stack, *(leaf.layer[axis] for axis in order))
    stack = len(leaf.stack)
    back = [*range(stack), *(stack + order.index(axis) for axis in range(len(order)))]
    return jnp.transpose(numbers, back).astype(dtype)
