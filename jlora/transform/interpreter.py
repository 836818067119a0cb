"""The interpreter that `adapt` uses: evaluates a jaxpr with some weights replaced by weight plus update.

An adapted leaf is passed on as `AdaptedWeight` until a product, a convolution or a lookup consumes it. JAX evaluates
all equations without such an input unchanged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from jlora.sharding.explicit_axes import first_place
from jlora.transform import jax_versions
from jlora.transform.adapted_weight import AdaptedWeight, Role, compute_dense
from jlora.transform.context import Context
from jlora.transform.rules.axis_ops import move_axes
from jlora.transform.rules.control_flow import CONTROL_FLOW
from jlora.transform.rules.dispatch import CONSUMERS, primitive
from jlora.transform.rules.linear_maps import LINEAR_MAPS, apply_linear_map, is_matrix
from jlora.tree.leaf_paths import is_array, leaves_by_path
from jlora.tree.quantized import Quantized, is_quantized


@dataclasses.dataclass(frozen=True)
class Traced:
    """A function traced to a jaxpr, with its input arrays; `trace` makes it.

    Attributes:
      jaxpr: the ClosedJaxpr; its inputs are `leaves`, its outputs the leaves of the result.
      leaves: the arrays of base and arguments, and the base's Quantized leaves, which the jaxpr takes as dense arrays.
      paths: one for each of `leaves`: the path of a leaf of the base, None for an argument.
      structure: the result's tree, for `jax.tree.unflatten`.
    """

    jaxpr: Any  # with its constants
    leaves: list  # of base and arguments, in the order of the jaxpr's inputs: arrays, and Quantized in the base
    paths: list[str | None]  # of the base's leaves; None for the arguments'
    structure: Any  # tree of the result


def trace(fn: Callable, base: Any, args: tuple, kwargs: dict) -> Traced:
    """Traces `fn(base, *args, **kwargs)`; leaves and arguments that are not arrays are passed unchanged.

    The arrays of base, args and kwargs, in this order, are `Traced.leaves`, and the inputs of its jaxpr.
    """
    base_paths = list(leaves_by_path(base))
    leaves, structure = jax.tree.flatten((base, args, kwargs), is_leaf=is_quantized)
    dynamic = [i for i, leaf in enumerate(leaves) if is_array(leaf)]
    paths = [base_paths[i] if i < len(base_paths) else None for i in dynamic]
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
    # The function sees a quantized weight as a dense one.
    seen = [jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, Quantized) else x for x in arrays]
    return Traced(jax.make_jaxpr(flat)(*seen), arrays, paths, out_structure)


def results_of(context: Context, traced: Traced, values: list) -> list:
    """Evaluates a traced function and returns the flat list of its results, arrays; `traced.structure` is their tree.

    Args:
      context: its dropout key, whether sums may be formed, and where uses are recorded.
      values: one for each of `traced.leaves`: the array, or an AdaptedWeight in its place.

    Raises:
      NoRuleError: a weight with an update is used where no rule takes it, or is itself a result, and
        `context.materialize` is false.
    """
    return [context.whole(result, "the result") for result in evaluate_jaxpr(context, traced.jaxpr, values)]


def evaluate_jaxpr(context: Context, closed: Any, values: list) -> list:
    """Evaluates a jaxpr and returns the list of its outputs; some may be AdaptedWeight if some inputs are.

    Args:
      context: its dropout key, whether sums may be formed, and where uses are recorded.
      closed: a jaxpr with its constants.
      values: one for each of its inputs: an array, or an AdaptedWeight in its place.

    Raises:
      NoRuleError: a weight with an update is used where no rule takes it, and `context.materialize` is false.
    """
    jaxpr, consts = jax_versions.split_closed_jaxpr(closed)
    env: dict[Any, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *values), strict=True))
    last = {var: i for i, eqn in enumerate(jaxpr.eqns) for var in eqn.invars if not isinstance(var, core.Literal)}
    kept = {var for var in jaxpr.outvars if not isinstance(var, core.Literal)}
    producers = {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}
    for i, eqn in enumerate(jaxpr.eqns):
        inputs = [_read(env, var) for var in eqn.invars]
        if any(isinstance(value, AdaptedWeight) for value in inputs):
            with jax_versions.context_of(eqn):
                outputs = _apply_rule(context, producers, eqn, inputs)
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
    """Evaluates one equation as a separate jaxpr, so that JAX keeps its custom derivatives, remat and effects."""
    pairs = {var: x for var, x in zip(eqn.invars, inputs, strict=True) if not isinstance(var, core.Literal)}
    alone = jaxpr.replace(constvars=[], invars=list(pairs), outvars=eqn.outvars, eqns=[eqn], effects=eqn.effects)
    return core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*pairs.values())


def _apply_rule(context: Context, producers: Mapping[Any, Any], eqn: Any, inputs: list) -> list:
    """Evaluates one equation with a AdaptedWeight input."""
    name, params = primitive(eqn)
    if name in CONTROL_FLOW:
        return CONTROL_FLOW[name](evaluate_jaxpr, context, params, inputs)
    if _count(inputs) > 1:
        inputs = [compute_dense(x) if _role(x) is Role.QUANTIZED else x for x in inputs]
    if name in LINEAR_MAPS:
        results = _map(context, producers, eqn, inputs)
    elif name in CONSUMERS:
        results = _consume(context, name, params, inputs)
    else:
        results = _move(eqn, inputs)
    if results is not None:
        return results
    return _alone(eqn, [context.whole(value, name, id(eqn)) for value in inputs])


def _count(inputs: list) -> int:
    return sum(isinstance(value, AdaptedWeight) for value in inputs)


def _role(value: Any) -> Role | None:
    return value.role if isinstance(value, AdaptedWeight) else None


def _alone(eqn: Any, inputs: list) -> list:
    return _apply_plain(jax.make_jaxpr(lambda: None)().jaxpr, eqn, inputs)


def _consume(context: Context, name: str, params: dict, inputs: list) -> list | None:
    if _count(inputs) == 1:
        return CONSUMERS[name](context, params, inputs)
    if not all(_role(value) in (None, Role.OBSERVED) for value in inputs):
        return None
    results: list | None = []
    for i, value in enumerate(inputs):  # each in turn is the weight, and the others are data
        if isinstance(value, AdaptedWeight) and results is not None:
            alone = [
                x if i == j or not isinstance(x, AdaptedWeight) else compute_dense(x) for j, x in enumerate(inputs)
            ]
            results = CONSUMERS[name](context, params, alone)
    return results


def _move(eqn: Any, inputs: list) -> list | None:
    value, *others = inputs
    if not isinstance(value, AdaptedWeight) or _count(others):
        return None
    return move_axes(value, lambda weight: _alone(eqn, [weight, *others]), eqn.primitive.name, eqn.params, others)


def _map(context: Context, producers: Mapping[Any, Any], eqn: Any, inputs: list) -> list | None:
    """Applies a linear map of a weight.

    If a matrix is multiplied by an adapted parameter that is not one (such as a gain), the latter is data.
    """
    name = eqn.primitive.name
    if all(_role(value) in (None, Role.QUANTIZED) for value in inputs):
        return None
    if name in ("mul", "div") and any(isinstance(value, AdaptedWeight) and is_matrix(value) for value in inputs):
        inputs = [
            context.whole(value, name, id(eqn)) if isinstance(value, AdaptedWeight) and not is_matrix(value) else value
            for value in inputs
        ]
    narrow = [
        None if isinstance(value, AdaptedWeight) else _narrow(producers, var, value)
        for var, value in zip(eqn.invars, inputs, strict=True)
    ]
    result = apply_linear_map(name, eqn.params, inputs, narrow, lambda *arrays: _alone(eqn, list(arrays)))
    return None if result is None else [result]


def _narrow(producers: Mapping[Any, Any], var: Any, value: Any) -> jax.Array:
    """Reduces the array to size 1 on the dims over which it cannot vary, according to the equations that made it."""
    value = jnp.asarray(value)
    for dim in _constant_dims(producers, var) if value.ndim else ():
        value = first_place(value, dim)
    return value


_ELEMENTWISE = ("convert_element_type", "copy", "not", "neg", "stop_gradient")


def _constant_dims(producers: Mapping[Any, Any], var: Any) -> set[int]:
    eqn = None if isinstance(var, core.Literal) else producers.get(var)
    if eqn is None:
        return set()
    if eqn.primitive.name in _ELEMENTWISE:
        return _constant_dims(producers, eqn.invars[0])
    if eqn.primitive.name != "broadcast_in_dim":
        return set()
    source, dims = eqn.invars[0], eqn.params["broadcast_dimensions"]
    constant = _constant_dims(producers, source)
    return {
        dim
        for dim in range(var.aval.ndim)
        if dim not in dims or source.aval.shape[dims.index(dim)] == 1 or dims.index(dim) in constant
    }
