"""`adapt`: any JAX function of a base tree as a function of base and adapter.

The function is traced to a jaxpr, and the jaxpr is evaluated with each adapted leaf standing for weight plus
update until a product or a lookup consumes it. Equations that no such leaf enters are evaluated by JAX as they are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core

from jlora import compat
from jlora.adapter import Adapter, Full, LowRank, require_fit
from jlora.consume import Use, dot_update, dot_use, lookup_axis, lookup_update, lookup_use
from jlora.context import Context
from jlora.control_flow import CONTROL_FLOW
from jlora.factored import Factored, factored, moved, watch
from jlora.paths import leaves_by_path, replace_leaves


def adapt(fn: Callable) -> Callable:
    """Makes `fn(base, *args, **kwargs)` a function of `(base, adapter, *args, dropout_key=None, **kwargs)`.

    With W a leaf that the adapter holds as LowRank, the result is that of `fn` on W + einsum(spec, a, b * scale),
    but the sum is not formed: x W becomes x W + (x a) b where `fn` uses W. Full entries stand in for their leaves.
    The result can be transformed as `fn` can: jit, grad, vmap, scan, checkpoint.

    Args:
      fn: any JAX function whose first argument is a pytree of arrays. Arguments that are arrays are traced;
        all others (numbers, strings, functions) stay as they are.

    Returns:
      A function. Its `adapter` is {path: LowRank | Full}, or None for the base alone. `dropout_key` switches
      the adapters' dropout on; without it the result is exact.

    Raises:
      JloraError (from the function returned): a path that is not in the base, an entry of another shape than
        its leaf, or a leaf used by a primitive that has no rule, naming both.
    """

    @functools.wraps(fn)
    def adapted(
        base: Any, adapter: Adapter | None, *args: Any, dropout_key: jax.Array | None = None, **kwargs: Any
    ) -> Any:
        if not adapter:
            return fn(base, *args, **kwargs)
        require_fit(adapter, leaves_by_path(base))
        base = replace_leaves(base, {path: e.value for path, e in adapter.items() if isinstance(e, Full)})
        low_rank = {path: entry for path, entry in adapter.items() if isinstance(entry, LowRank)}
        if not low_rank:
            return fn(base, *args, **kwargs)
        traced = _trace(fn, base, args, kwargs)
        values = [
            factored(path, leaf, low_rank[path]) if path in low_rank else leaf
            for path, leaf in zip(traced.paths, traced.leaves, strict=True)
        ]
        return jax.tree.unflatten(traced.structure, _results(Context(dropout_key), traced, values))

    return adapted


def find_uses(fn: Callable, base: Any, *args: Any, **kwargs: Any) -> dict[str, set[Use]]:
    """{path of a leaf: how `fn(base, *args, **kwargs)` uses it}, found without computing anything.

    Args:
      base, args, kwargs: as `fn` takes them; ShapeDtypeStructs will do for arrays.
    """
    traced = _trace(fn, base, args, kwargs)
    context = Context(None)

    def run(leaves: list) -> list:
        pairs = zip(traced.paths, leaves, strict=True)
        values = [leaf if path is None else watch(path, leaf) for path, leaf in pairs]
        return _results(context, traced, values)

    jax.eval_shape(run, traced.leaves)
    return {path: context.uses.get(path, set()) for path in traced.paths if path is not None}


@dataclasses.dataclass(frozen=True)
class _Traced:
    jaxpr: Any  # with its constants
    leaves: list  # arrays of base and arguments, in the order of the jaxpr's inputs
    paths: list[str | None]  # of the base's leaves; None for the arguments'
    structure: Any  # tree of the result


def _trace(fn: Callable, base: Any, args: tuple, kwargs: dict) -> _Traced:
    base_paths = list(leaves_by_path(base))
    leaves, structure = jax.tree.flatten((base, args, kwargs))
    dynamic = [i for i, leaf in enumerate(leaves) if i < len(base_paths) or _is_array(leaf)]
    paths = [*base_paths, *[None] * (len(dynamic) - len(base_paths))]
    out_structure = None

    def flat(*arrays: Any) -> list:
        nonlocal out_structure
        filled = list(leaves)
        for i, array in zip(dynamic, arrays, strict=True):
            filled[i] = array
        base, args, kwargs = jax.tree.unflatten(structure, filled)
        results, out_structure = jax.tree.flatten(fn(base, *args, **kwargs))
        return results

    arrays = [leaves[i] for i in dynamic]
    return _Traced(jax.make_jaxpr(flat)(*arrays), arrays, paths, out_structure)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct))


def _results(context: Context, traced: _Traced, values: list) -> list:
    return [context.whole(result, "the result") for result in _evaluate(context, traced.jaxpr, values)]


def _evaluate(context: Context, closed: Any, values: list) -> list:
    """The jaxpr's outputs for inputs of which some are Factored."""
    jaxpr, consts = compat.closed(closed)
    env: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *values), strict=True))
    last = {var: i for i, eqn in enumerate(jaxpr.eqns) for var in eqn.invars if not isinstance(var, core.Literal)}
    kept = {var for var in jaxpr.outvars if not isinstance(var, core.Literal)}
    for i, eqn in enumerate(jaxpr.eqns):
        inputs = [_read(env, var) for var in eqn.invars]
        if any(isinstance(value, Factored) for value in inputs):
            outputs = _apply_rule(context, eqn, inputs)
        else:
            outputs = _apply_plain(jaxpr, eqn, inputs)
        env.update(zip(eqn.outvars, outputs, strict=True))
        for var in {var for var in eqn.invars if not isinstance(var, core.Literal)} - kept:
            if last[var] == i:
                del env[var]
    return [_read(env, var) for var in jaxpr.outvars]


def _read(env: Mapping[Any, Any], var: Any) -> Any:
    return var.val if isinstance(var, core.Literal) else env[var]


def _apply_plain(jaxpr: Any, eqn: Any, inputs: Sequence[Any]) -> list:
    """One equation as a jaxpr of its own, so that JAX binds it: custom derivatives, remat and effects survive."""
    pairs = {var: x for var, x in zip(eqn.invars, inputs, strict=True) if not isinstance(var, core.Literal)}
    alone = jaxpr.replace(constvars=[], invars=list(pairs), outvars=eqn.outvars, eqns=[eqn], effects=eqn.effects)
    return core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*pairs.values())


def _apply_rule(context: Context, eqn: Any, inputs: list) -> list:
    """One equation that a factored weight enters."""
    name, params = eqn.primitive.name, eqn.params
    if name in CONTROL_FLOW:
        return CONTROL_FLOW[name](_evaluate, context, params, inputs)
    result: Any
    if name == "dot_general":
        result = _dot(context, params, inputs)
    elif name == "gather":
        result = _lookup(context, params, inputs)
    else:
        result = moved(inputs[0], name, params) if len(inputs) == 1 else None
    return _without_rule(context, eqn, inputs) if result is None else [result]


def _without_rule(context: Context, eqn: Any, inputs: list) -> list:
    plain = [context.whole(value, eqn.primitive.name) for value in inputs]
    return _apply_plain(jax.make_jaxpr(lambda: None)().jaxpr, eqn, plain)


def _dot(context: Context, params: dict, inputs: list) -> jax.Array | None:
    left, right = inputs
    if isinstance(left, Factored) and isinstance(right, Factored):
        return None
    w_is_left = isinstance(left, Factored)
    weight, x = (left, right) if w_is_left else (right, left)
    side = 0 if w_is_left else 1
    contract, batch = params["dimension_numbers"]
    operands = (weight.weight, x) if w_is_left else (x, weight.weight)
    product = lax.dot_general(*operands, **params)
    if weight.watched:
        context.saw(weight, dot_use(weight, contract[side], batch[side]))
        return product
    update = dot_update(weight, x, w_is_left, params, context.draw(weight))
    return product + update.astype(product.dtype)


def _lookup(context: Context, params: dict, inputs: list) -> jax.Array | None:
    table, indices = inputs
    axis = lookup_axis(params, table.weight.shape) if isinstance(table, Factored) else None
    if axis is None or isinstance(indices, Factored):
        return None
    rows = lax.gather(table.weight, indices, **_gather_arguments(params))
    if table.watched:
        context.saw(table, lookup_use(table, axis))
        return rows
    return rows + lookup_update(table, indices, params, axis).astype(rows.dtype)


def _gather_arguments(params: dict) -> dict:
    names = ("dimension_numbers", "slice_sizes", "unique_indices", "indices_are_sorted", "mode", "fill_value")
    return {name: params[name] for name in names}
