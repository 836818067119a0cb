"""Moves of a quantized weight that are made later, wherever it is dequantized: a rule for each primitive that has one.

Each gives the primitive's results, none of them formed, or None where it has no rule for this case. What takes layers
from the stack takes them from the codes; the rest is done to each layer. The arguments are the weight, the primitive's
parameters, and its other operands. The result has one LazyWeight for each of the primitive's results.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial

import jax
from jax import lax
from jax.sharding import NamedSharding

from jlora.sharding.codes_shardings import codes_shardings
from jlora.transform.quantized_weight import LazyWeight


def _then(weight: LazyWeight, move: Callable) -> LazyWeight:
    """Adds an operation that is applied to each layer after dequantizing."""
    result = jax.eval_shape(move, jax.ShapeDtypeStruct(weight.inner, weight.dtype))
    return dataclasses.replace(weight, inner=result.shape, dtype=result.dtype, moves=(*weight.moves, move))


def _to_codes(weight: LazyWeight, move: Callable[[jax.Array, tuple[int, ...]], jax.Array]) -> LazyWeight:
    """Applies `move(array, its shape without the stack)` to all arrays of the leaf."""
    count = len(weight.leaf.stack)
    return dataclasses.replace(weight, leaf=jax.tree.map(lambda x: move(x, x.shape[count:]), weight.leaf))


def defer_nothing(weight: LazyWeight, params: dict, others: list) -> list[LazyWeight]:
    """Returns [the weight], unchanged: the primitive, such as `copy`, does not change an array's values."""
    return [weight]


def defer_cast(weight: LazyWeight, params: dict, others: list) -> list[LazyWeight]:
    """Returns [the weight, which is cast to `params["new_dtype"]` after dequantizing]: one more of its `moves`."""
    return [_then(weight, partial(lax.convert_element_type, new_dtype=params["new_dtype"]))]


def defer_transpose(weight: LazyWeight, params: dict, others: list) -> list[LazyWeight] | None:
    """Returns [the weight, whose layers are transposed after dequantizing]; None if an axis of the stack would move.

    `params["permutation"]` is of all axes (*stack, *inner), as in `lax.transpose`.
    """
    order, count = params["permutation"], len(weight.leaf.stack)
    if tuple(order[:count]) != tuple(range(count)):
        return None
    return [_then(weight, partial(lax.transpose, permutation=[axis - count for axis in order[count:]]))]


def defer_reshape(weight: LazyWeight, params: dict, others: list) -> list[LazyWeight] | None:
    """Returns [the weight, its stack reshaped in the codes, its layers after dequantizing].

    None if the new shape mixes stack and layer, that is, none of its beginnings has the product of the stack's sizes.

    Args:
      params: `new_sizes`, all sizes of the result, and `dimensions`; if that is not None, the result is None.
    """
    sizes, layers = tuple(params["new_sizes"]), math.prod(weight.leaf.stack)
    ends = [end for end in range(len(sizes) + 1) if math.prod(sizes[:end]) == layers]
    if params.get("dimensions") is not None or not ends:
        return None
    stack, inner = sizes[: ends[0]], sizes[ends[0] :]
    return [_then(_to_codes(weight, lambda x, rest: lax.reshape(x, (*stack, *rest))), lambda x: lax.reshape(x, inner))]


def defer_squeeze(weight: LazyWeight, params: dict, others: list) -> list[LazyWeight]:
    """Returns [the weight without the axes `params["dimensions"]`, all of size 1].

    Those of the stack are removed from the codes, the others after dequantizing.
    """
    count, dims = len(weight.leaf.stack), [dim % weight.ndim for dim in params["dimensions"]]
    inner = [dim - count for dim in dims if dim >= count]
    layers = _to_codes(weight, lambda x, rest: lax.squeeze(x, [dim for dim in dims if dim < count]))
    return [_then(layers, partial(lax.squeeze, dimensions=inner))]


def defer_slice(weight: LazyWeight, params: dict, others: list) -> list[LazyWeight]:
    """Returns [the slice of the weight]: the stack's axes are sliced in the codes, the others after dequantizing.

    `params` has `start_indices`, `limit_indices` and `strides` (None means 1), one number for each axis (*stack,
    *inner).
    """
    return [_cut(weight, params["start_indices"], params["limit_indices"], params["strides"] or (1,) * weight.ndim)]


def _cut(weight: LazyWeight, starts: Sequence[int], limits: Sequence[int], strides: Sequence[int]) -> LazyWeight:
    n = len(weight.leaf.stack)
    bounds = [tuple(numbers) for numbers in (starts, limits, strides)]

    def cut_layers(x: jax.Array, rest: tuple[int, ...]) -> jax.Array:
        start, limit, stride = (numbers[:n] for numbers in bounds)
        return lax.slice(x, start + (0,) * len(rest), limit + rest, stride + (1,) * len(rest))

    start, limit, stride = (numbers[n:] for numbers in bounds)
    return _then(_to_codes(weight, cut_layers), lambda x: lax.slice(x, start, limit, stride))


def defer_dynamic_slice(weight: LazyWeight, params: dict, others: list) -> list[LazyWeight] | None:
    """Returns [the weight with only some layers, taken from the codes]; None if the slice also cuts a layer.

    Args:
      params: `slice_sizes`, a size for each axis (*stack, *inner).
      others: the start index of each axis, int32 ().
    """
    sizes, n = tuple(params["slice_sizes"]), len(weight.leaf.stack)
    if sizes[n:] != weight.inner:
        return None

    def cut_layers(x: jax.Array, rest: tuple[int, ...]) -> jax.Array:
        return lax.dynamic_slice(x, [*others[:n], *[0] * len(rest)], sizes[:n] + rest)

    return [_to_codes(weight, cut_layers)]


def defer_split(weight: LazyWeight, params: dict, others: list) -> list[LazyWeight]:
    """Returns the parts of the weight along axis `params["axis"]`, with the sizes `params["sizes"]`, in order.

    Along an axis of the stack the codes are split; along another, each part is cut out after dequantizing.
    """
    axis, start, parts = params["axis"], 0, []
    for size in params["sizes"]:
        parts.append(_part(weight, axis, start, start + size))
        start += size
    return parts


def defer_unstack(weight: LazyWeight, params: dict, others: list) -> list[LazyWeight]:
    """Returns the places along axis `params["axis"]` of the weight, in order, each without that axis.

    Along an axis of the stack they are taken from the codes; along another, each is cut out after dequantizing.
    """
    axis = params["axis"]
    places = [_part(weight, axis, place, place + 1) for place in range(weight.shape[axis])]
    return [place for part in places for place in defer_squeeze(part, {"dimensions": (axis,)}, [])]


def _part(weight: LazyWeight, axis: int, start: int, limit: int) -> LazyWeight:
    starts, limits = [0] * weight.ndim, list(weight.shape)
    starts[axis], limits[axis] = start, limit
    return _cut(weight, starts, limits, [1] * weight.ndim)


def defer_constrain(weight: LazyWeight, params: dict, others: list) -> list[LazyWeight] | None:
    """Returns [the weight, its codes on the devices that the constraint names], instead of the dequantized array.

    None if the weight has `moves` already, if `params["sharding"]` is no NamedSharding, or if
    `params["unconstrained_dims"]` is not empty.
    """
    sharding = params["sharding"]
    if weight.moves or params["unconstrained_dims"] or not isinstance(sharding, NamedSharding):
        return None
    names = (*sharding.spec, *[None] * (weight.ndim - len(sharding.spec)))
    shardings = codes_shardings(weight.leaf, sharding.mesh, names)
    stored = jax.tree.map(lax.with_sharding_constraint, weight.leaf.stored, shardings)
    return [dataclasses.replace(weight, leaf=dataclasses.replace(weight.leaf, stored=stored))]


def defer_barrier(weight: LazyWeight, params: dict, others: list) -> list[LazyWeight]:
    """Returns [the weight with `lax.optimization_barrier` on its codes]; no value changes."""
    stored = jax.tree.map(lax.optimization_barrier, weight.leaf.stored)
    return [dataclasses.replace(weight, leaf=dataclasses.replace(weight.leaf, stored=stored))]
