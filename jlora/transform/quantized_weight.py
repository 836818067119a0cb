"""`Deferred`: a quantized weight that records the function's operations on it and is dequantized only when used."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
from jax import lax
from jax.sharding import NamedSharding

from jlora.sharding.stored import stored_shardings
from jlora.tree.quantized import Quantized, as_array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Deferred:
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


def deferred(leaf: Any) -> Any:
    """Wraps a quantized leaf as Deferred; returns an array unchanged."""
    return Deferred(leaf, leaf.layer, leaf.dtype) if isinstance(leaf, Quantized) else leaf


def formed(weight: Any) -> jax.Array:
    """Dequantizes a Deferred to an array; returns an array unchanged."""
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
    """Calls `fn(weight, *others)`; the backward pass keeps a quantized weight's codes, not the dequantized array."""
    if not isinstance(weight, Deferred):
        return fn(weight, *others)
    return jax.checkpoint(lambda weight, *others: fn(formed(weight), *others))(weight, *others)


def moved_later(weight: Deferred, name: str, params: dict, others: list) -> list[Deferred] | None:
    """Applies a primitive that only moves, slices or casts, without dequantizing; None if it has no rule."""
    return _RULES[name](weight, params, others) if name in _RULES else None


def _then(weight: Deferred, move: Callable) -> Deferred:
    """Adds an operation that is applied to each layer after dequantizing."""
    result = jax.eval_shape(move, jax.ShapeDtypeStruct(weight.inner, weight.dtype))
    return dataclasses.replace(weight, inner=result.shape, dtype=result.dtype, moves=(*weight.moves, move))


def _to_codes(weight: Deferred, move: Callable[[jax.Array, tuple[int, ...]], jax.Array]) -> Deferred:
    """Applies `move(array, its shape without the stack)` to all arrays of the leaf."""
    count = len(weight.leaf.stack)
    return dataclasses.replace(weight, leaf=jax.tree.map(lambda x: move(x, x.shape[count:]), weight.leaf))


def _same(weight: Deferred, params: dict, others: list) -> list[Deferred]:
    return [weight]


def _cast(weight: Deferred, params: dict, others: list) -> list[Deferred]:
    return [_then(weight, partial(lax.convert_element_type, new_dtype=params["new_dtype"]))]


def _transpose(weight: Deferred, params: dict, others: list) -> list[Deferred] | None:
    order, count = params["permutation"], len(weight.leaf.stack)
    if tuple(order[:count]) != tuple(range(count)):
        return None
    return [_then(weight, partial(lax.transpose, permutation=[axis - count for axis in order[count:]]))]


def _reshape(weight: Deferred, params: dict, others: list) -> list[Deferred] | None:
    sizes, layers = tuple(params["new_sizes"]), math.prod(weight.leaf.stack)
    ends = [end for end in range(len(sizes) + 1) if math.prod(sizes[:end]) == layers]
    if params.get("dimensions") is not None or not ends:
        return None
    stack, inner = sizes[: ends[0]], sizes[ends[0] :]
    return [_then(_to_codes(weight, lambda x, rest: lax.reshape(x, (*stack, *rest))), lambda x: lax.reshape(x, inner))]


def _squeeze(weight: Deferred, params: dict, others: list) -> list[Deferred]:
    count, dims = len(weight.leaf.stack), [dim % weight.ndim for dim in params["dimensions"]]
    inner = [dim - count for dim in dims if dim >= count]
    layers = _to_codes(weight, lambda x, rest: lax.squeeze(x, [dim for dim in dims if dim < count]))
    return [_then(layers, partial(lax.squeeze, dimensions=inner))]


def _slice(weight: Deferred, params: dict, others: list) -> list[Deferred]:
    return [_cut(weight, params["start_indices"], params["limit_indices"], params["strides"] or (1,) * weight.ndim)]


def _cut(weight: Deferred, starts: Sequence[int], limits: Sequence[int], strides: Sequence[int]) -> Deferred:
    n = len(weight.leaf.stack)
    bounds = [tuple(numbers) for numbers in (starts, limits, strides)]

    def cut_layers(x: jax.Array, rest: tuple[int, ...]) -> jax.Array:
        start, limit, stride = (numbers[:n] for numbers in bounds)
        return lax.slice(x, start + (0,) * len(rest), limit + rest, stride + (1,) * len(rest))

    start, limit, stride = (numbers[n:] for numbers in bounds)
    return _then(_to_codes(weight, cut_layers), lambda x: lax.slice(x, start, limit, stride))


def _dynamic_slice(weight: Deferred, params: dict, others: list) -> list[Deferred] | None:
    sizes, n = tuple(params["slice_sizes"]), len(weight.leaf.stack)
    if sizes[n:] != weight.inner:
        return None

    def cut_layers(x: jax.Array, rest: tuple[int, ...]) -> jax.Array:
        return lax.dynamic_slice(x, [*others[:n], *[0] * len(rest)], sizes[:n] + rest)

    return [_to_codes(weight, cut_layers)]


def _split(weight: Deferred, params: dict, others: list) -> list[Deferred]:
    axis, start, parts = params["axis"], 0, []
    for size in params["sizes"]:
        parts.append(_part(weight, axis, start, start + size))
        start += size
    return parts


def _unstack(weight: Deferred, params: dict, others: list) -> list[Deferred]:
    axis = params["axis"]
    places = [_part(weight, axis, place, place + 1) for place in range(weight.shape[axis])]
    return [place for part in places for place in _squeeze(part, {"dimensions": (axis,)}, [])]


def _part(weight: Deferred, axis: int, start: int, limit: int) -> Deferred:
    starts, limits = [0] * weight.ndim, list(weight.shape)
    starts[axis], limits[axis] = start, limit
    return _cut(weight, starts, limits, [1] * weight.ndim)


def _constrain(weight: Deferred, params: dict, others: list) -> list[Deferred] | None:
    """Moves the codes between devices, instead of the dequantized array."""
    sharding = params["sharding"]
    if weight.moves or params["unconstrained_dims"] or not isinstance(sharding, NamedSharding):
        return None
    names = (*sharding.spec, *[None] * (weight.ndim - len(sharding.spec)))
    shardings = stored_shardings(weight.leaf, sharding.mesh, names)
    stored = jax.tree.map(lax.with_sharding_constraint, weight.leaf.stored, shardings)
    return [dataclasses.replace(weight, leaf=dataclasses.replace(weight.leaf, stored=stored))]


def _barrier(weight: Deferred, params: dict, others: list) -> list[Deferred]:
    stored = jax.tree.map(lax.optimization_barrier, weight.leaf.stored)
    return [dataclasses.replace(weight, leaf=dataclasses.replace(weight.leaf, stored=stored))]


_RULES: dict[str, Callable[[Deferred, dict, list], list[Deferred] | None]] = {
    "convert_element_type": _cast,
    "copy": _same,
    "dynamic_slice": _dynamic_slice,
    "name": _same,
    "optimization_barrier": _barrier,
    "reshape": _reshape,
    "sharding_constraint": _constrain,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "unstack": _unstack,  # JAX 0.11: `for layer in stack`
}
"""{primitive: rule}. All other primitives dequantize the array."""
