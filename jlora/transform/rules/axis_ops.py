"""Rules of operations that only move, drop, add or cast axes of a weight: A and B are changed in the same way."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jlora.transform.adapted_weight import AdaptedWeight, Role, Update
from jlora.transform.quantized_weight import LazyWeight, materialize
from jlora.transform.rules import deferred_moves as later

AxisPlan = tuple[tuple[tuple[int, ...], ...], Callable]
"""Of one result: the sources of its dims among the old ones, and what to do to a factor, an array of the old dims, some
of them of size 1."""


@dataclasses.dataclass(frozen=True)
class AxisOp:
    """What a primitive that only moves, drops, adds or casts axes does to a weight.

    Attributes:
      plan: (shape of the weight, parameters, other operands) -> an AxisPlan for each result, or None if there is no
        rule.
      defer: (quantized weight, parameters, other operands) -> the results, dequantized later, or None. Without it the
        weight is dequantized here.
      cuts: whether it keeps all axes; an axis that it cuts to a single place then counts as picked.
    """

    plan: Callable[[tuple[int, ...], dict, list], list[AxisPlan] | None]
    defer: Callable[[LazyWeight, dict, list], list[LazyWeight] | None] | None = None
    cuts: bool = False


def move_axes(value: AdaptedWeight, run: Callable, name: str, params: dict, others: list) -> list[AdaptedWeight] | None:
    """Applies a primitive that only moves, drops, adds or casts axes; returns None if it has no rule.

    Otherwise it returns one AdaptedWeight for each of the primitive's results. Its weight is the primitive's result; a,
    b and the gain are moved in the same way, and `Update.axes` says where each new dim comes from: a transpose turns
    axes ((0,), (1,)) into ((1,), (0,)), a (r, in, 1) into (r, 1, in). A dim that is cut to one place counts as
    `picked`.

    Args:
      run: run(array) applies the primitive to an array in place of the weight and returns the list of its results.
      name: of the primitive; one that is not in AXIS_OPS has no rule.
      params, others: parameters and other operands of the primitive.
    """
    rule = AXIS_OPS.get(name)
    plans = rule.plan(value.shape, params, others) if rule else None
    if rule is None or plans is None:
        return None
    deferred = rule.defer(value.weight, params, others) if rule.defer and isinstance(value.weight, LazyWeight) else None
    weights = run(materialize(value.weight)) if deferred is None else deferred
    if name == "reshape":
        value = _broadcast_before_merging(value, params["new_sizes"])
    results = [_move_value(value, weight, rule.cuts, *plan) for weight, plan in zip(weights, plans, strict=True)]
    known = [result for result in results if result is not None]
    return known if len(known) == len(results) else None


def _move_value(
    value: AdaptedWeight, weight: jax.Array | LazyWeight, cuts: bool, sources: tuple, apply: Callable
) -> AdaptedWeight | None:
    if cuts:
        cut = [dim for dim, size in enumerate(weight.shape) if size == 1 < value.shape[dim]]
    else:
        kept = {dim for dims in sources for dim in dims}
        cut = [dim for dim, size in enumerate(value.shape) if size > 1 and dim not in kept]
    updates = [_move_update(update, sources, cut, apply) for update in value.updates]
    gain = None if value.gain is None else apply(value.gain)
    known = [update for update in updates if update is not None]
    if len(known) < len(updates) or (gain is None) != (value.gain is None):
        return None
    if value.gain is not None and gain is not None:
        gain = gain.astype(value.gain.dtype)  # a gain in half precision would make the result less precise
    return AdaptedWeight(weight, tuple(known), gain)


def _move_update(update: Update, sources: tuple, cut: list[int], apply: Callable) -> Update | None:
    moved = update.change_factors(jax.vmap(apply))
    if update.has_factors and (moved.a is None or moved.b is None or (moved.scale is None) != (update.scale is None)):
        return None
    axes = tuple(tuple(axis for dim in dims for axis in update.axes[dim]) for dims in sources)
    picked = tuple(sorted({*update.picked, *(axis for dim in cut for axis in update.axes[dim])}))
    return dataclasses.replace(moved, axes=axes, picked=picked)


def _same(shape: tuple[int, ...], apply: Callable) -> list[AxisPlan]:
    return [(tuple((dim,) for dim in range(len(shape))), apply)]


def _keep_axes(shape: tuple[int, ...], params: dict, others: list) -> list[AxisPlan]:
    return _same(shape, lambda x: x)


def _stop_gradient(shape: tuple[int, ...], params: dict, others: list) -> list[AxisPlan]:
    return _same(shape, lax.stop_gradient)


def _constrain(shape: tuple[int, ...], params: dict, others: list) -> list[AxisPlan]:
    sharding = params["sharding"]
    if not isinstance(sharding, NamedSharding):
        return _same(shape, lambda x: x)
    names = (*sharding.spec, *[None] * (len(shape) - len(sharding.spec)))

    def apply(x: jax.Array) -> jax.Array:
        varying = (None if size == 1 else name for name, size in zip(names, x.shape, strict=True))
        return lax.with_sharding_constraint(x, NamedSharding(sharding.mesh, PartitionSpec(*varying)))

    return _same(shape, apply)


def _reshard(shape: tuple[int, ...], params: dict, others: list) -> list[AxisPlan]:
    sharding = params["dst_sharding"]
    names = (*sharding.spec, *[None] * (len(shape) - len(sharding.spec)))

    def apply(x: jax.Array) -> jax.Array:
        varying = (None if size == 1 else name for name, size in zip(names, x.shape, strict=True))
        return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*varying)))

    return _same(shape, apply)


def _cast(shape: tuple[int, ...], params: dict, others: list) -> list[AxisPlan] | None:
    if not jnp.issubdtype(params["new_dtype"], jnp.floating):
        return None
    return _same(shape, lambda x: lax.convert_element_type(x, params["new_dtype"]))


def _transpose(shape: tuple[int, ...], params: dict, others: list) -> list[AxisPlan]:
    permutation = params["permutation"]
    return [(tuple((dim,) for dim in permutation), lambda x: lax.transpose(x, permutation))]


def _rev(shape: tuple[int, ...], params: dict, others: list) -> list[AxisPlan]:
    return _same(shape, lambda x: lax.rev(x, params["dimensions"]))


def _squeeze(shape: tuple[int, ...], params: dict, others: list) -> list[AxisPlan]:
    dropped = {dim % len(shape) for dim in params["dimensions"]}
    kept = tuple((dim,) for dim in range(len(shape)) if dim not in dropped)
    return [(kept, lambda x: lax.squeeze(x, tuple(dropped)))]


def _slice(shape: tuple[int, ...], params: dict, others: list) -> list[AxisPlan]:
    starts, limits = params["start_indices"], params["limit_indices"]
    strides = params["strides"] or (1,) * len(shape)

    def apply(x: jax.Array) -> jax.Array:
        spread = [x.shape[dim] == 1 for dim in range(len(shape))]  # nothing to slice if the factor does not vary
        return lax.slice(
            x,
            [0 if one else start for one, start in zip(spread, starts, strict=True)],
            [1 if one else limit for one, limit in zip(spread, limits, strict=True)],
            [1 if one else stride for one, stride in zip(spread, strides, strict=True)],
        )

    return _same(shape, apply)


def _dynamic_slice(shape: tuple[int, ...], params: dict, others: list) -> list[AxisPlan]:
    def apply(x: jax.Array) -> jax.Array:
        one = [x.shape[dim] == 1 for dim in range(len(shape))]
        starts = [jnp.zeros_like(i) if still else i for still, i in zip(one, others, strict=True)]
        sizes = [1 if still else size for still, size in zip(one, params["slice_sizes"], strict=True)]
        return lax.dynamic_slice(x, starts, sizes)

    return _same(shape, apply)


def _split(shape: tuple[int, ...], params: dict, others: list) -> list[AxisPlan]:
    axis, plans, start = params["axis"], [], 0
    for size in params["sizes"]:
        begin, end = [0] * len(shape), list(shape)
        begin[axis], end[axis] = start, start + size
        plans += _slice(shape, {"start_indices": begin, "limit_indices": end, "strides": None}, [])
        start += size
    return plans


def _unstack(shape: tuple[int, ...], params: dict, others: list) -> list[AxisPlan]:
    axis = params["axis"]
    kept = tuple((dim,) for dim in range(len(shape)) if dim != axis)
    return [(kept, partial(_place, axis=axis, place=place)) for place in range(shape[axis])]


def _place(x: jax.Array, axis: int, place: int) -> jax.Array:
    return lax.index_in_dim(x, 0 if x.shape[axis] == 1 else place, axis, keepdims=False)


def _broadcast(shape: tuple[int, ...], params: dict, others: list) -> list[AxisPlan]:
    target, dims = params["shape"], params["broadcast_dimensions"]

    def apply(x: jax.Array) -> jax.Array:
        sizes = [1] * len(target)  # new and broadcast axes have size 1 in a factor
        for source, dim in enumerate(dims):
            sizes[dim] = x.shape[source]
        return lax.broadcast_in_dim(x, sizes, dims)

    return [(tuple((dims.index(dim),) if dim in dims else () for dim in range(len(target))), apply)]


def _reshape(shape: tuple[int, ...], params: dict, others: list) -> list[AxisPlan] | None:
    if params.get("dimensions") is not None:
        return None
    groups = _matching_groups(shape, params["new_sizes"])

    def apply(x: jax.Array) -> jax.Array | None:
        sizes: list[int] = []
        for old, new in groups:
            varies = {x.shape[dim] != 1 for dim in old if shape[dim] != 1}
            if len(varies) > 1:
                return None  # a factor that varies over only some of the merged axes would have to be broadcast
            sizes += new if True in varies or not varies else [1] * len(new)
        return lax.reshape(x, sizes)

    sources: list[tuple[int, ...]] = [tuple(old) for old, new in groups for _ in new]
    return [(tuple(sources), apply)]


def _broadcast_before_merging(value: AdaptedWeight, new_sizes: tuple[int, ...]) -> AdaptedWeight:
    """Broadcasts factors over repeated dims (`jnp.repeat`) that will be merged with a dim over which they vary."""
    if value.role is Role.OBSERVED:
        return value
    factors = [factor[0] for update in value.updates for factor in update.factors]
    factors += [] if value.gain is None else [value.gain]
    copies = {dim for dim in range(len(value.shape)) if all(factor.shape[dim] == 1 for factor in factors)}
    groups = [old for old, _ in _matching_groups(value.shape, new_sizes)]

    def broadcast(x: jax.Array) -> jax.Array:
        taken = {dim for old in groups if any(x.shape[dim] > 1 for dim in old) for dim in old}
        return jnp.broadcast_to(x, [value.shape[d] if d in taken & copies else x.shape[d] for d in range(x.ndim)])

    updates = tuple(update.change_factors(jax.vmap(broadcast)) for update in value.updates)
    return AdaptedWeight(value.weight, updates, None if value.gain is None else broadcast(value.gain))


def _matching_groups(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Splits a reshape into the smallest runs of equal size: [(dims of old, sizes of new)]."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        dims: list[int] = []
        sizes: list[int] = []
        while not (dims or sizes) or math.prod(old[dim] for dim in dims) != math.prod(sizes):
            behind = math.prod(old[dim] for dim in dims) <= math.prod(sizes)
            if i < len(old) and (behind or j == len(new)):
                dims.append(i)
                i += 1
            else:
                sizes.append(new[j])
                j += 1
        groups.append((dims, sizes))
    return groups


def _keep_axes_of_one(shape: tuple[int, ...], params: dict, others: list) -> list[AxisPlan] | None:
    return None if others else _keep_axes(shape, params, others)


AXIS_OPS: dict[str, AxisOp] = {
    "broadcast_in_dim": AxisOp(_broadcast),
    "convert_element_type": AxisOp(_cast, later.defer_cast),
    "copy": AxisOp(_keep_axes, later.defer_nothing),
    "dynamic_slice": AxisOp(_dynamic_slice, later.defer_dynamic_slice, cuts=True),
    # checkpoint_name: a policy sees the weight, which is no residual
    "name": AxisOp(_keep_axes, later.defer_nothing),
    "optimization_barrier": AxisOp(_keep_axes_of_one, later.defer_barrier),
    "pcast": AxisOp(_keep_axes),  # inside shard_map JAX spreads the factors where they meet the data
    "pvary": AxisOp(_keep_axes),
    "reduce_precision": AxisOp(_keep_axes),
    "reshape": AxisOp(_reshape, later.defer_reshape),
    "reshard": AxisOp(_reshard),
    "rev": AxisOp(_rev),
    "sharding_constraint": AxisOp(_constrain, later.defer_constrain),
    "slice": AxisOp(_slice, later.defer_slice, cuts=True),
    "split": AxisOp(_split, later.defer_split, cuts=True),
    "squeeze": AxisOp(_squeeze, later.defer_squeeze),
    "stop_gradient": AxisOp(_stop_gradient),
    "transpose": AxisOp(_transpose, later.defer_transpose),
    "unstack": AxisOp(_unstack, later.defer_unstack),  # JAX 0.11: `for layer in stack`
}
"""{primitive: rule}."""
