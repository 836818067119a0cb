"""The primitives that consume a weight with an update. A rule returns the results, or None if it does not apply."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jlora.ops.products import ROUNDED, dot_general
from jlora.sharding.explicit_axes import explicit_mesh, split_like
from jlora.transform import jax_versions
from jlora.transform.adapted_weight import AdaptedWeight, Role, Update
from jlora.transform.context import Context
from jlora.transform.moment_probe import tap
from jlora.transform.quantized_weight import apply_with_remat
from jlora.transform.rules.convolution import conv_arguments, conv_gain, conv_update, conv_use
from jlora.transform.rules.dot_and_gather import (
    dot_update,
    dot_use,
    gain_places,
    lookup_axis,
    lookup_gain,
    lookup_update,
    lookup_use,
    ragged_update,
    times,
)
from jlora.transform.uses import Use


def primitive(eqn: Any) -> tuple[str, dict]:
    """Returns (name, parameters) of an equation's primitive.

    A product of `jlora.ops.products`, which is a jitted function in the jaxpr, is ("dot_general", that product's
    parameters).
    """
    name, params = eqn.primitive.name, eqn.params
    if name in jax_versions.JIT and params["name"] == ROUNDED:
        return "dot_general", next(_products(params["jaxpr"]))
    return name, params


def _products(jaxpr: Any) -> Iterator[dict]:
    """Yields the parameters of the dot_generals in a jaxpr, first those of other platforms than a CPU."""
    for eqn in jax_versions.split_closed_jaxpr(jaxpr)[0].eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn.params
        inner = [eqn.params.get("call_jaxpr"), *reversed(eqn.params.get("branches", ()))]
        for nested in filter(None, inner):
            yield from _products(nested)


def select_updates(kind: str, weight: AdaptedWeight) -> tuple[list[Update], jax.Array | None]:
    """Returns (the updates that apply to a use of this kind, the gain, which is None if there are none).

    An update applies if its `only` is None or `kind`, a `Use.kind`, and the weight's role is ADAPTED.
    """
    adapted = weight.role is Role.ADAPTED
    updates = [update for update in weight.updates if adapted and update.only in (None, kind)]
    return updates, weight.gain if updates else None


def _note(context: Context, weight: AdaptedWeight, use: Callable[[Update], Use]) -> None:
    """Records the use of each leaf in a weight that is observed."""
    for update in weight.updates if weight.role is Role.OBSERVED else ():
        context.saw(update, use(update))


def _as(update: jax.Array, result: jax.Array) -> jax.Array:
    """Gives the update the dtype and the sharding of the result to which it is added."""
    return split_like(update.astype(result.dtype), result)


def _multiply(left: jax.Array, right: jax.Array, params: dict) -> jax.Array:
    plain = explicit_mesh(left) is None and explicit_mesh(right) is None
    if plain and left.dtype == right.dtype == jnp.bfloat16 == (params["preferred_element_type"] or left.dtype):
        return dot_general(left, right, params["dimension_numbers"])
    return lax.dot_general(left, right, **params)


def _dot(context: Context, params: dict, inputs: list) -> list | None:
    w_is_left = isinstance(inputs[0], AdaptedWeight)
    weight, x = inputs if w_is_left else inputs[::-1]
    side = 0 if w_is_left else 1
    contract, batch = params["dimension_numbers"]

    def product(x: jax.Array) -> jax.Array:
        return apply_with_remat(lambda w, x: _multiply(*((w, x) if w_is_left else (x, w)), params), weight.weight, x)

    match weight.role:
        case Role.OBSERVED:
            _note(context, weight, lambda update: dot_use(update, contract[side], batch[side]))
            return [product(x)]
        case Role.PROBED:
            result = product(x)
            for update in weight.updates:
                result = tap(update, result, x, w_is_left, params)
            return [result]
        case Role.QUANTIZED:
            return [product(x)]
    updates, gain = select_updates("linear", weight)
    gains = (None, None) if gain is None else gain_places(gain, x.ndim, w_is_left, params)
    if gains is None:
        return None
    before, after = gains
    x = x if before is None else times(x, before)
    result = product(x)
    for update in updates:
        key = context.draw(update, x)
        result = result + _as(dot_update(update, weight.weight, x, w_is_left, params, key), result)
    return [result if after is None else times(result, after)]


def _lookup(context: Context, params: dict, inputs: list) -> list | None:
    table, indices = inputs
    axis = lookup_axis(params, table.shape) if isinstance(table, AdaptedWeight) else None
    if axis is None:
        return None
    names = ("dimension_numbers", "slice_sizes", "unique_indices", "indices_are_sorted", "mode", "fill_value")
    arguments = {name: params[name] for name in names}
    rows = apply_with_remat(lambda w: lax.gather(w, indices, **arguments), table.weight)
    _note(context, table, partial(lookup_use, axis=axis))
    updates, gain = select_updates("lookup", table)
    for update in updates:
        rows = rows + _as(lookup_update(update, indices, params, axis), rows)
    return [rows if gain is None else times(rows, lookup_gain(gain, indices, params, axis))]


def _convolve(context: Context, params: dict, inputs: list) -> list | None:
    x, kernel = inputs
    if not isinstance(kernel, AdaptedWeight):
        return None
    result = apply_with_remat(lambda w, x: lax.conv_general_dilated(x, w, **conv_arguments(params)), kernel.weight, x)
    _note(context, kernel, partial(conv_use, params=params))
    updates, whole_gain = select_updates("conv", kernel)
    gain = None if whole_gain is None else conv_gain(whole_gain, params)
    if (gain is None) != (whole_gain is None):
        return None
    for update in updates:
        change = conv_update(update, kernel.shape, x, params, context.draw(update, x))
        if change is None:
            return None
        result = result + _as(change, result)
    return [result if gain is None else times(result, gain)]


def _ragged_dot(context: Context, params: dict, inputs: list) -> list | None:
    """Multiplies each group of rows of x (tokens, in) by its own matrix of w (groups, in, out)."""
    x, weight, sizes = inputs
    numbers = params["ragged_dot_dimension_numbers"]
    places = (numbers.dot_dimension_numbers, tuple(numbers.lhs_ragged_dimensions), tuple(numbers.rhs_group_dimensions))
    if not isinstance(weight, AdaptedWeight) or places != ((((1,), (1,)), ((), ())), (0,), (0,)):
        return None
    multiply = partial(_multiply_groups, params, sizes)
    _note(context, weight, lambda update: dot_use(update, [1], [0]))
    updates, gain = select_updates("linear", weight)
    if (gain is not None and gain.shape[1] != 1) or weight.role is Role.PROBED:
        return None
    result = apply_with_remat(lambda w, x: multiply(x, w), weight.weight, x)
    for update in updates:
        change = ragged_update(update, weight.shape, x, multiply, context.draw(update, x))
        if change is None:
            return None
        result = result + _as(change, result)
    return [result if gain is None else times(result, _gain_of_groups(gain, weight.shape, sizes, x.shape[0]))]


def _multiply_groups(params: dict, sizes: jax.Array, x: jax.Array, w: jax.Array) -> jax.Array:
    names = ("ragged_dot_dimension_numbers", "precision", "preferred_element_type", "group_offset")
    return lax.ragged_dot_general(x, w, sizes, **{name: params[name] for name in names})


def _gain_of_groups(gain: jax.Array, shape: tuple[int, ...], sizes: jax.Array, tokens: int) -> jax.Array:
    """Returns the gain (groups, 1, out) of each token's group, as (tokens, out or 1)."""
    gains = jnp.broadcast_to(gain, (shape[0], 1, gain.shape[2]))[:, 0]
    return jnp.repeat(gains, sizes, axis=0, total_repeat_length=tokens)


CONSUMERS: dict[str, Callable[[Context, dict, list], list | None]] = {
    "dot_general": _dot,
    "gather": _lookup,
    "conv_general_dilated": _convolve,
    "ragged_dot_general": _ragged_dot,
}
"""{primitive: rule}."""
