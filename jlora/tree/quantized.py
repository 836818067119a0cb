"""A quantized weight as a leaf of a tree of parameters."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jlora.errors import JloraError
from jlora.quantization import int8, nf4
from jlora.sharding.mesh import fitting

Kind = Literal["nf4", "int8"]
"""How a weight is stored: in 4 bits (QLoRA's) or in 8 (LLM.int8's)."""


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

    stored: nf4.NF4 | int8.Int8
    layer: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    inputs: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dtype: np.dtype = dataclasses.field(metadata={"static": True})

    @property
    def stack(self) -> tuple[int, ...]:
        """The sizes of the stack's axes, which lead; () where there are none."""
        stored = self.stored
        return stored.mean.shape if isinstance(stored, nf4.NF4) else stored.scales.shape[:-1]

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


def quantize_leaf(
    leaf: jax.Array | np.ndarray, kind: Kind, *, inputs: tuple[int, ...] = (0,), stack: int | None = None
) -> Quantized:
    """One weight in 4 or 8 bits; a stack is worked off layer by layer.

    Args:
      leaf: a dense kernel (*stack, in, out) or any other weight, floating point; numbers are taken in float32.
      kind: "nf4" or "int8".
      inputs: the axes of one layer that a product contracts: a row of them is what shares a scale in int8, and
        along them NF4's blocks run.
      stack: how many leading axes are layers; None is all but two.

    Raises:
      JloraError: another kind, a leaf that has not two axes besides the stack's or is not floating point, a number that
        is not finite (where the leaf is concrete).
    """
    stack = max(0, np.ndim(leaf) - 2) if stack is None else stack
    _require(leaf, kind, stack)
    layer, inputs = tuple(leaf.shape[stack:]), tuple(sorted(inputs))
    return Quantized(_encoded(leaf, kind, stack, inputs), layer, inputs, np.dtype(leaf.dtype))


def quantize_like(like: Quantized, leaf: jax.Array) -> Quantized:
    """Another weight of its shape, as `like` is quantized and of its dtype."""
    kind: Kind = "nf4" if isinstance(like.stored, nf4.NF4) else "int8"
    return dataclasses.replace(like, stored=_encoded(leaf, kind, len(like.stack), like.inputs))


def stored_shardings(leaf: Quantized, mesh: Any, names: Sequence[Any]) -> nf4.NF4 | int8.Int8:
    """The shardings of the arrays of `leaf.stored` for a weight whose axes are split over these axes of the mesh.

    Blocks stay whole, and so does what the axes do not divide; of several output (or input) axes the first counts.
    """
    count, order = len(leaf.stack), _order(leaf.layer, leaf.inputs)
    stack, row, column = tuple(names[:count]), names[count + order[0]], names[count + leaf.inputs[0]]
    fit: Any = functools.partial(fitting, mesh)
    if isinstance(leaf.stored, int8.Int8):
        int8_codes, rows = leaf.stored
        return int8.Int8(fit((*stack, row, column), int8_codes.shape), fit((*stack, row), rows.shape))
    _, scales, steps, mean = leaf.stored
    blocks = fit((*stack, *((row, column) if scales.ndim == count + 2 else (None,))), scales.shape)
    return nf4.NF4(blocks, blocks, fit((*stack, None), steps.shape), fit(stack, mean.shape))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _encoded(leaf: jax.Array, kind: Kind, stack: int, inputs: tuple[int, ...]) -> nf4.NF4 | int8.Int8:
    layer = leaf.shape[stack:]

    def encode(numbers: jax.Array) -> nf4.NF4 | int8.Int8:
        numbers = jnp.transpose(numbers.astype(jnp.float32), _order(layer, inputs))
        encode = nf4.encode if kind == "nf4" else int8.encode
        return encode(numbers.reshape(_matrix(layer, inputs, kind)))

    layers = jax.lax.map(encode, leaf.reshape(-1, *layer))
    return jax.tree.map(lambda x: x.reshape(*leaf.shape[:stack], *x.shape[1:]), layers)


def _order(layer: tuple[int, ...], inputs: tuple[int, ...]) -> list[int]:
    """The axes of a layer as they are stored: outputs, inputs."""
    return [axis for axis in range(len(layer)) if axis not in inputs] + list(inputs)


def _matrix(layer: tuple[int, ...], inputs: tuple[int, ...], kind: str) -> tuple[int, ...]:
    """The shape in which a layer is encoded: (outputs, inputs), and one row where NF4's blocks would not fill rows."""
    columns = math.prod(layer[axis] for axis in inputs)
    return (math.prod(layer),) if kind == "nf4" and columns % nf4.BLOCK else (math.prod(layer) // columns, columns)


def _require(leaf: Any, kind: str, stack: int) -> None:
    if kind not in get_args(Kind):
        raise JloraError(f"quantize: expected nf4 or int8, found {kind!r}")
    if np.ndim(leaf) - stack < 2 or not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise JloraError(
            f"quantize: expected a weight of two axes or more and of floating point, found {leaf.dtype} of shape"
            f" {np.shape(leaf)}, {stack} of its axes for layers"
        )
    if not isinstance(leaf, jax.core.Tracer) and not bool(jnp.isfinite(leaf).all()):
        raise JloraError("quantize: expected finite numbers, found NaN or infinity; is the checkpoint broken?")


def as_array(leaf: Any, dtype: Any = None) -> jax.Array:
    """A leaf as an array of `dtype` (None is its own): what a Quantized stands for, an array as it is."""
    dtype = leaf.dtype if dtype is None else dtype
    if not isinstance(leaf, Quantized):
        return leaf.astype(dtype)
    order = _order(leaf.layer, leaf.inputs)
    if isinstance(leaf.stored, nf4.NF4):
        numbers = nf4.decode(leaf.stored, _matrix(leaf.layer, leaf.inputs, "nf4")[-1])
    else:
        numbers = int8.decode(leaf.stored)
    numbers = numbers.reshape(*leaf.stack, *(leaf.layer[axis] for axis in order))
    stack = len(leaf.stack)
    back = [*range(stack), *(stack + order.index(axis) for axis in range(len(order)))]
    return jnp.transpose(numbers, back).astype(dtype)
