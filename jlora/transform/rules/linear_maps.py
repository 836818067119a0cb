"""Rules of linear maps of weights (scales, masks, joins, padding, copies), which are applied to the factors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jlora.sharding.explicit_axes import first_place, split_like
from jlora.transform.adapted_weight import AdaptedWeight, Role, Update
from jlora.transform.quantized_weight import materialize

RunPrimitive = Callable[..., list]
"""Applies the primitive to arrays in place of its operands."""


def apply_linear_map(name: str, params: dict, inputs: list, narrow: list, run: RunPrimitive) -> AdaptedWeight | None:
    """Applies a primitive that is linear in the weights among its operands; returns None for a case without a rule.

    The result is the primitive's, as an AdaptedWeight: its weight is that of the primitive on the base's weights, and
    the map is applied to a or b of each update. For `mul` with an array, one factor of each update is multiplied (None
    if the array varies over axes of both); for `concatenate` the updates of all parts are padded with zeros.

    Args:
      name: one of LINEAR_MAPS.
      params, inputs: parameters and operands of the primitive; at least one operand is an AdaptedWeight.
      narrow: for each operand: an array with size 1 on the dims over which it is known not to vary (or the operand
        itself); None for an AdaptedWeight.
      run: run(*arrays) applies the primitive to arrays in place of its operands; returns the list of its results.
    """
    weight = run(*[materialize(x.weight) if isinstance(x, AdaptedWeight) else x for x in inputs])[0]
    return _RULES[name](weight, params, inputs, narrow)


def is_matrix(value: AdaptedWeight) -> bool:
    """Returns whether one of the value's updates is of a matrix: `update.axes` name more than one axis of size above 1.

    A scale or bias that is only broadcast to more dims does not count, since their `axes` are (). Without updates it is
    false.
    """
    sizes = value.shape
    return any(
        sum(len(axes) for axes, size in zip(update.axes, sizes, strict=True) if size > 1) > 1
        for update in value.updates
    )


def _negate(weight: jax.Array, params: dict, inputs: list, narrow: list) -> AdaptedWeight:
    updates = tuple(_with_factor(update, "b", lambda b: -b) for update in inputs[0].updates)
    return AdaptedWeight(weight, updates, inputs[0].gain)


def _multiply(weight: jax.Array, params: dict, inputs: list, narrow: list) -> AdaptedWeight | None:
    value, scale = (inputs[0], narrow[1]) if narrow[0] is None else (inputs[1], narrow[0])
    return _scale_value(value, weight, scale, lax.mul)


def _divide(weight: jax.Array, params: dict, inputs: list, narrow: list) -> AdaptedWeight | None:
    return _scale_value(inputs[0], weight, narrow[1], lax.div) if narrow[0] is None else None


def _scale_value(
    value: AdaptedWeight, weight: jax.Array, scale: jax.Array | None, scaled_by: Callable
) -> AdaptedWeight | None:
    if scale is None or weight.shape != value.shape:
        return None
    updates = _scale_updates(value, scale, scaled_by)
    return None if updates is None else AdaptedWeight(weight, updates, value.gain)


def _scale_updates(value: AdaptedWeight, scale: jax.Array, scaled_by: Callable) -> tuple[Update, ...] | None:
    """Scales one factor of each update; None if the scale varies over axes of both factors."""
    scale = jnp.asarray(scale).reshape(jnp.shape(scale) or (1,) * len(value.shape))
    dims = [dim for dim, size in enumerate(scale.shape) if size > 1]
    if value.role is Role.OBSERVED:  # A and B are not known yet
        return value.updates if _may_scale(value, dims) else None
    updates = [_scale_update(update, dims, scale, scaled_by) for update in value.updates]
    known = [update for update in updates if update is not None]
    return tuple(known) if len(known) == len(updates) else None


def _may_scale(value: AdaptedWeight, dims: list[int]) -> bool:
    """Returns whether an array that varies over `dims` can be a mask or a gain along one axis, rather than data."""
    own = {d for update in value.updates for d, axes in enumerate(update.axes) if axes and value.shape[d] > 1}
    return not dims or (is_matrix(value) and set(dims) < own)


def _scale_update(update: Update, dims: list[int], scale: jax.Array, scaled_by: Callable) -> Update | None:
    a, b = update.factors
    for name, factor, other in (("b", b, a), ("a", a, b)):
        fits = all(factor.shape[1 + dim] > 1 or other.shape[1 + dim] == 1 for dim in dims)
        if fits and not (name == "a" and update.role is Role.PROBED):
            return _with_factor(update, name, lambda x: scaled_by(*_broadcast_arrays(x, scale[None].astype(x.dtype))))
    return None


def _broadcast_arrays(*arrays: jax.Array) -> list[jax.Array]:
    shape = jnp.broadcast_shapes(*(x.shape for x in arrays))
    return [jnp.broadcast_to(x, shape) for x in arrays]


def _with_factor(update: Update, name: str, change: Callable) -> Update:
    """Applies `change` to a or b; the scale is put into b first."""
    if not update.has_factors:
        return update
    a, b = update.factors
    return dataclasses.replace(update, scale=None, **{"a": a, "b": b, name: change(a if name == "a" else b)})


def _select(weight: jax.Array, params: dict, inputs: list, narrow: list) -> AdaptedWeight | None:
    """Selects between a weight and numbers, or between several weights, by the first operand."""
    which, cases = narrow[0], inputs[1:]
    if which is None or any(x is not None and x.size > 1 for x in narrow[1:]):
        return None
    factored = [i for i, case in enumerate(cases) if isinstance(case, AdaptedWeight)]
    picked = {i: which == (bool(i) if which.dtype == bool else i) for i in factored}
    parts = [_scale_updates(cases[number], mask, lax.mul) for number, mask in picked.items()]
    updates = [update for part in parts if part is not None for update in part]
    gains = [cases[number].gain for number in picked]
    if None in parts or (len(gains) > 1 and any(gain is not None for gain in gains)):
        return None
    if gains[0] is not None:
        (mask,) = picked.values()
        weight = _under_gain(weight, gains[0], ~jnp.broadcast_to(mask, weight.shape))
    return AdaptedWeight(weight, tuple(updates), gains[0])


def _under_gain(weight: jax.Array, gain: jax.Array, outside: jax.Array) -> jax.Array:
    """Divides the numbers outside the leaf by the gain, because the gain will later multiply the whole weight."""
    outside = split_like(outside, weight)
    return jnp.where(outside, (weight / jnp.where(gain == 0, 1, gain)).astype(weight.dtype), weight)


def _concatenate(weight: jax.Array, params: dict, inputs: list, narrow: list) -> AdaptedWeight | None:
    return _join_parts(weight, inputs, narrow, params["dimension"])


def _stack(weight: jax.Array, params: dict, inputs: list, narrow: list) -> AdaptedWeight | None:
    axis = params["axis"]
    return _join_parts(weight, [_expand_dims(x, axis) for x in inputs], narrow, axis)


def _expand_dims(value: Any, axis: int) -> Any:
    if not isinstance(value, AdaptedWeight):
        return jnp.expand_dims(value, axis)
    updates = [update.change_factors(lambda x: jnp.expand_dims(x, 1 + axis)) for update in value.updates]
    axes = [(*update.axes[:axis], (), *update.axes[axis:]) for update in updates]
    updates = [dataclasses.replace(update, axes=named) for update, named in zip(updates, axes, strict=True)]
    gain = None if value.gain is None else jnp.expand_dims(value.gain, axis)
    return AdaptedWeight(jnp.expand_dims(materialize(value.weight), axis), tuple(updates), gain)


def _join_parts(weight: jax.Array, parts: list, narrow: list, dim: int) -> AdaptedWeight | None:
    """Concatenates the parts on `dim`: each update is padded with zeros where the other parts are."""
    values = [part for part in parts if isinstance(part, AdaptedWeight)]
    observed = any(value.role is Role.OBSERVED for value in values)
    if (observed and not _may_join(values, narrow)) or _differ_under_a_gain(values):
        return None
    updates: list[Update] = []
    start = 0
    for part in parts:
        size = part.shape[dim]
        if isinstance(part, AdaptedWeight):
            amounts = [(0, 0, 0)] * weight.ndim
            amounts[dim] = (start, weight.shape[dim] - start - size, 0)
            updates += [_pad_update(update, part.shape, amounts) for update in part.updates]
        start += size
    return AdaptedWeight(weight, tuple(updates), _join_gains(parts, dim))


def _may_join(values: list[AdaptedWeight], narrow: list) -> bool:
    """Returns whether weights are joined with each other or with constants, rather than with data."""
    ranks = [sum(map(len, update.axes)) for value in values for update in value.updates]
    return min(ranks) > 1 and all(x is None or x.size == 1 for x in narrow)


def _differ_under_a_gain(values: list[AdaptedWeight]) -> bool:
    seen = {update.only for value in values for update in value.updates}
    return len(seen) > 1 and any(value.gain is not None for value in values)


def _join_gains(parts: list, dim: int) -> jax.Array | None:
    gains = [part.gain if isinstance(part, AdaptedWeight) else None for part in parts]
    first = next((gain for gain in gains if gain is not None), None)
    if first is None:
        return None
    one = jnp.ones((1,) * first.ndim, first.dtype)
    spread = _broadcast_arrays(*(one if gain is None else first_place(gain, dim) for gain in gains))
    sized = []
    for gain, whole, part in zip(gains, spread, parts, strict=True):
        shape = [part.shape[d] if d == dim else size for d, size in enumerate(whole.shape)]
        sized.append(jnp.broadcast_to(jnp.ones((), first.dtype) if gain is None else gain, shape))
    return jnp.concatenate(sized, dim)


def _pad_update(update: Update, shape: Sequence[int], amounts: Sequence[tuple[int, int, int]]) -> Update:
    """Returns the update of a weight of this shape after `lax.pad` with these amounts."""
    if not update.has_factors:
        return update
    for dim, amount in enumerate(amounts):
        if any(amount):  # at least one factor must be zero outside the weight
            varying = [name for name in ("a", "b") if getattr(update, name).shape[1 + dim] > 1] or ["b"]
            for name in varying:
                update = _with_factor(update, name, partial(_pad, axis=1 + dim, size=shape[dim], amount=amount))
    return update


def _pad(x: jax.Array, axis: int, size: int, amount: tuple[int, int, int]) -> jax.Array:
    x = jnp.broadcast_to(x, (*x.shape[:axis], size, *x.shape[axis + 1 :]))
    return lax.pad(x, jnp.zeros((), x.dtype), [amount if d == axis else (0, 0, 0) for d in range(x.ndim)])


def _pad_weight(weight: jax.Array, params: dict, inputs: list, narrow: list) -> AdaptedWeight | None:
    value, number = inputs
    if not isinstance(value, AdaptedWeight) or isinstance(number, AdaptedWeight):
        return None
    amounts, gain = [(int(low), int(high), int(inner)) for low, high, inner in params["padding_config"]], value.gain
    updates = tuple(_pad_update(update, value.shape, amounts) for update in value.updates)
    if gain is not None:
        kept = [(0, 0, 0) if gain.shape[dim] == 1 else amount for dim, amount in enumerate(amounts)]
        gain = lax.pad(gain, jnp.ones((), gain.dtype), kept)
        if kept != amounts:
            outside = lax.pad(jnp.zeros(value.shape, bool), jnp.asarray(True), amounts)
            weight = _under_gain(weight, gain, outside)
    return AdaptedWeight(weight, updates, gain)


def _tile(weight: jax.Array, params: dict, inputs: list, narrow: list) -> AdaptedWeight:
    reps, value = params["reps"], inputs[0]

    def tile(x: jax.Array) -> jax.Array:
        return jnp.tile(x, [1 if size == 1 else times for size, times in zip(x.shape, reps, strict=True)])

    updates = tuple(update.change_factors(jax.vmap(tile)) for update in value.updates)
    return AdaptedWeight(weight, updates, None if value.gain is None else tile(value.gain))


_RULES: dict[str, Callable[[jax.Array, dict, list, list], AdaptedWeight | None]] = {
    "concatenate": _concatenate,
    "div": _divide,
    "mul": _multiply,
    "neg": _negate,
    "pad": _pad_weight,
    "select_n": _select,
    "stack": _stack,
    "tile": _tile,
}
LINEAR_MAPS = frozenset(_RULES)
"""The names of the primitives that have a rule here."""
