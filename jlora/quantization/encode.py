"""`quantize_leaf`: quantizes one weight to 8 or 4 bits."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jlora.errors import JloraError
from jlora.quantization import int8, nf4
from jlora.tree.quantized import QuantizationKind, Quantized, storage_order

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def quantize_leaf(
    leaf: Float[Array | np.ndarray, " *shape"],
    kind: QuantizationKind,
    *,
    inputs: tuple[int, ...] = (0,),
    stack: int | None = None,
) -> Quantized:
    """Quantizes one weight to 4 or 8 bits; a stack is quantized layer by layer.

    Args:
      leaf: a dense kernel (*stack, in, out) or any other weight, floating point; it is converted to float32 first.
      kind: "nf4" or "int8".
      inputs: the axes of one layer that a product contracts. In int8 a row of inputs shares a scale; in NF4 blocks run
        along them.
      stack: how many leading axes are layers; None means all except two.

    Raises:
      JloraError: another kind; a leaf with fewer than two axes besides the stack's, or not of floating point; a number
        that is not finite (checked if the leaf is concrete).
    """
    stack = max(0, np.ndim(leaf) - 2) if stack is None else stack
    _require(leaf, kind, stack)
    layer, inputs = tuple(leaf.shape[stack:]), tuple(sorted(inputs))
    return Quantized(_encode_layers(leaf, kind, stack, inputs), layer, inputs, np.dtype(leaf.dtype))


def quantize_like(like: Quantized, leaf: jax.Array) -> Quantized:
    """Quantizes a weight in the same way as `like`, which has the same shape and dtype; nothing is checked.

    The result has the kind (NF4 or Int8), stack, inputs and dtype of `like`.
    """
    kind: QuantizationKind = "nf4" if isinstance(like.stored, nf4.NF4) else "int8"
    return dataclasses.replace(like, stored=_encode_layers(leaf, kind, len(like.stack), like.inputs))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _encode_layers(leaf: jax.Array, kind: QuantizationKind, stack: int, inputs: tuple[int, ...]) -> nf4.NF4 | int8.Int8:
    layer = leaf.shape[stack:]

    def encode(numbers: jax.Array) -> nf4.NF4 | int8.Int8:
        numbers = jnp.transpose(numbers.astype(jnp.float32), storage_order(layer, inputs))
        encode = nf4.encode if kind == "nf4" else int8.encode
        return encode(numbers.reshape(_matrix(layer, inputs, kind)))

    layers = jax.lax.map(encode, leaf.reshape(-1, *layer))
    return jax.tree.map(lambda x: x.reshape(*leaf.shape[:stack], *x.shape[1:]), layers)


def _matrix(layer: tuple[int, ...], inputs: tuple[int, ...], kind: str) -> tuple[int, ...]:
    """Returns the shape in which a layer is encoded: (outputs, inputs), or one row if NF4's blocks do not fill rows."""
    columns = math.prod(layer[axis] for axis in inputs)
    return (math.prod(layer),) if kind == "nf4" and columns % nf4.BLOCK else (math.prod(layer) // columns, columns)


def _require(leaf: Any, kind: str, stack: int) -> None:
    if kind not in get_args(QuantizationKind):
        raise JloraError(f"quantize: expected nf4 or int8, found {kind!r}")
    if np.ndim(leaf) - stack < 2 or not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise JloraError(
            f"quantize: expected a weight of two axes or more and of floating point, found {leaf.dtype} of shape"
            f" {np.shape(leaf)}, {stack} of its axes for layers"
        )
    if not isinstance(leaf, jax.core.Tracer) and not bool(jnp.isfinite(leaf).all()):
        raise JloraError("quantize: expected finite numbers, found NaN or infinity; is the checkpoint broken?")
