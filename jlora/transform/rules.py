"""The primitives that consume a weight with an update. A rule gives the results, or None where it does not apply."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jlora.products import ROUNDED, dot_general
from jlora.transform import compat
from jlora.transform.consume import (
    dot_update,
    dot_use,
    gain_places,
    lookup_axis,
    lookup_gain,
    lookup_update,
    lookup_use,
    times,
)
from jlora.transform.context import Context
from jlora.transform.convolution import conv_arguments, conv_gain, conv_update, conv_use
from jlora.transform.deferred import used
from jlora.transform.factored import Factored
from jlora.transform.tap import tap


def primitive(eqn: Any) -> tuple[str, dict]:
    """(name, parameters) of the primitive that an equation is; a product of `jlora.products` is a dot_general."""
    name, params = eqn.primitive.name, eqn.params
    if name in compat.JIT and params["name"] == ROUNDED:
        return "dot_general", next(_products(params["jaxpr"]))
    return name, params


def _products(jaxpr: Any) -> Iterator[dict]:
    """The parameters of the dot_generals in it, of other platforms than a CPU first."""
    for eqn in compat.closed(jaxpr)[0].eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn.params
        inner = [eqn.params.get("call_jaxpr"), *reversed(eqn.params.get("branches", ()))]
        for nested in filter(None, inner):
            yield from _products(nested)


def _multiply(left: jax.Array, right: jax.Array, params: dict) -> jax.Array:
    if left.dtype == right.dtype == jnp.bfloat16 == (params["preferred_element_type"] or left.dtype):
        return dot_general(left, right, params["dimension_numbers"])
    return lax.dot_general(left, right, **params)


def _dot(context: Context, params: dict, inputs: list) -> list | None:
    w_is_left = isinstance(inputs[0], Factored)
    weight, x = inputs if w_is_left else inputs[::-1]
    side = 0 if w_is_left else 1
    contract, batch = params["dimension_numbers"]

    def product(x: jax.Array) -> jax.Array:
        return used(lambda w, x: _multiply(*((w, x) if w_is_left else (x, w)), params), weight.weight, x)

    if weight.watched:
        context.saw(weight, dot_use(weight, contract[side], batch[side]))
    if weight.tapped:
        return [tap(weight, product(x), x, w_is_left, params)]
    if weight.a is None or weight.only not in (None, "linear"):
        return [product(x)]
    gains = (None, None) if weight.gain is None else gain_places(weight, x.ndim, w_is_left, params)
    if gains is None:
        return None
    before, after = gains
    x = x if before is None else times(x, before)
    base = product(x)
    result = base + dot_update(weight, x, w_is_left, params, context.draw(weight, x)).astype(base.dtype)
    return [result if after is None else times(result, after)]


def _lookup(context: Context, params: dict, inputs: list) -> list | None:
    table, indices = inputs
    axis = lookup_axis(params, table.weight.shape) if isinstance(table, Factored) else None
    if axis is None:
        return None
    rows = used(lambda w: lax.gather(w, indices, **_gather_arguments(params)), table.weight)
    if table.watched:
        context.saw(table, lookup_use(table, axis))
    if table.a is None or table.tapped or table.only not in (None, "lookup"):
        return [rows]
    rows = rows + lookup_update(table, indices, params, axis).astype(rows.dtype)
    return [rows if table.gain is None else times(rows, lookup_gain(table.gain, indices, params, axis))]


def _gather_arguments(params: dict) -> dict:
    names = ("dimension_numbers", "slice_sizes", "unique_indices", "indices_are_sorted", "mode", "fill_value")
    return {name: params[name] for name in names}


def _convolve(context: Context, params: dict, inputs: list) -> list | None:
    x, kernel = inputs
    if not isinstance(kernel, Factored):
        return None
    result = used(lambda w, x: lax.conv_general_dilated(x, w, **conv_arguments(params)), kernel.weight, x)
    if kernel.watched:
        context.saw(kernel, conv_use(kernel, params))
    if kernel.a is None or kernel.tapped or kernel.only not in (None, "conv"):
        return [result]
    update = conv_update(kernel, x, params, context.draw(kernel, x))
    gain = None if kernel.gain is None else conv_gain(kernel.gain, params)
    if update is None or (gain is None) != (kernel.gain is None):
        return None
    result = result + update.astype(result.dtype)
    return [result if gain is None else times(result, gain)]


CONSUMERS: dict[str, Callable[[Context, dict, list], list | None]] = {
    "dot_general": _dot,
    "gather": _lookup,
    "conv_general_dilated": _convolve,
}
"""By the primitive's name."""
