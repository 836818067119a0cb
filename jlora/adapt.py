"""`adapt`: any JAX function of a base tree as a function of base and adapter.

The function is traced to a jaxpr, and the jaxpr is evaluated with each adapted leaf standing for weight plus
update until a product or a lookup consumes it. Equations that no such leaf enters are evaluated by JAX as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from jlora import compat
from jlora.adapter import Adapter, Full, LowRank
from jlora.consume import Use, dot_update, dot_use, lookup_axis, lookup_update, lookup_use
from jlora.errors import JloraError
from jlora.factored import Factored, factored, moved, slice_leading, watch
from jlora.paths import leaves_by_path, replace_leaves, require


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
      JloraError (from the function returned): a path that is not in the base, or a leaf used by a primitive
        that has no rule, naming both.
    """

    @functools.wraps(fn)
    def adapted(
        base: Any, adapter: Adapter | None, *args: Any, dropout_key: jax.Array | None = None, **kwargs: Any
    ) -> Any:
        if not adapter:
            return fn(base, *args, **kwargs)
        base = replace_leaves(base, {path: e.value for path, e in adapter.items() if isinstance(e, Full)})
        low_rank = {path: entry for path, entry in adapter.items() if isinstance(entry, LowRank)}
        if not low_rank:
            return fn(base, *args, **kwargs)
        traced = _trace(fn, base, args, kwargs)
        for path in low_rank:
            require(path, traced.paths, "the base tree")
        values = [
            factored(path, leaf, low_rank[path]) if path in low_rank else leaf
            for path, leaf in zip(traced.paths, traced.leaves, strict=True)
        ]
        results = _evaluate(_Context(dropout_key), traced.jaxpr, traced.consts, values)
        return jax.tree.unflatten(traced.structure, [_whole(result) for result in results])

    return adapted


def find_uses(fn: Callable, base: Any, *args: Any, **kwargs: Any) -> dict[str, set[Use]]:
    """{path of a leaf: how `fn(base, *args, **kwargs)` uses it}, found without computing anything.

    Args:
      base, args, kwargs: as `fn` takes them; ShapeDtypeStructs will do for arrays.
    """
    traced = _trace(fn, base, args, kwargs)
    context = _Context(None)

    def run(leaves: list) -> None:
        values = [watch(path, leaf) if path else leaf for path, leaf in zip(traced.paths, leaves, strict=True)]
        _evaluate(context, traced.jaxpr, traced.consts, values)

    jax.eval_shape(run, traced.leaves)
    return {path: context.uses.get(path, set()) for path in traced.paths if path}


@dataclasses.dataclass(frozen=True)
class _Traced:
    jaxpr: Any
    consts: Sequence[Any]
    leaves: list  # arrays of base and arguments, in the order of the jaxpr's inputs
    paths: list[str]  # of the base's leaves; "" for the arguments'
    structure: Any  # tree of the result


def _trace(fn: Callable, base: Any, args: tuple, kwargs: dict) -> _Traced:
    base_leaves = leaves_by_path(base)
    leaves, structure = jax.tree.flatten((base, args, kwargs))
    dynamic = [i for i, leaf in enumerate(leaves) if i < len(base_leaves) or _is_array(leaf)]
    paths = [*base_leaves, *[""] * (len(dynamic) - len(base_leaves))]
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
    closed = jax.make_jaxpr(flat)(*arrays)
    return _Traced(closed.jaxpr, closed.consts, arrays, paths, out_structure)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct))


@dataclasses.dataclass
class _Context:
    """What an evaluation carries along: the dropout key of this level and what was seen of the leaves' uses."""

    key: jax.Array | None
    uses: dict[str, set[Use]] = dataclasses.field(default_factory=dict)
    drawn: Counter = dataclasses.field(default_factory=Counter)

    def saw(self, weight: Factored, use: Use) -> None:
        self.uses.setdefault(weight.path, set()).add(use)

    def draw(self, weight: Factored) -> jax.Array | None:
        """A key for this use of the weight: no two uses share one."""
        if self.key is None or weight.dropout == 0.0:
            return None
        self.drawn[weight.path] += 1
        return _fold(_fold(self.key, weight.path), self.drawn[weight.path])

    def enter(self) -> _Context:
        """The context of a nested function."""
        self.drawn[""] += 1
        return _Context(None if self.key is None else _fold(_fold(self.key, ""), self.drawn[""]), self.uses)

    def at(self, count: jax.Array) -> _Context:
        """The context of one iteration."""
        return _Context(None if self.key is None else jax.random.fold_in(self.key, count), self.uses)


def _fold(key: jax.Array, what: str | int) -> jax.Array:
    return jax.random.fold_in(key, zlib.crc32(what.encode()) if isinstance(what, str) else what)


def _evaluate(context: _Context, jaxpr: Any, consts: Sequence[Any], values: Sequence[Any]) -> list:
    """The jaxpr's outputs for inputs of which some are Factored."""
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


def _apply_rule(context: _Context, eqn: Any, inputs: list) -> list:
    """One equation that a factored weight enters."""
    name, params = eqn.primitive.name, eqn.params
    result: Any
    if name == "dot_general":
        result = _dot(context, params, inputs)
    elif name == "gather":
        result = _lookup(context, params, inputs)
    elif name in compat.JIT:
        return _jit(context, params, inputs)
    elif name in compat.CHECKPOINT:
        return _checkpoint(context, params, inputs)
    elif name == "scan":
        return _scan(context, params, inputs)
    elif name == "while":
        return _while(context, params, inputs)
    elif name == "cond":
        return _cond(context, params, inputs)
    else:
        result = moved(inputs[0], name, params) if isinstance(inputs[0], Factored) and len(inputs) == 1 else None
    return [result] if result is not None else _no_rule(context, eqn, inputs)


def _no_rule(context: _Context, eqn: Any, inputs: list) -> list:
    """Notes the use where leaves are only watched; otherwise an error with the leaf's path."""
    weights = [value for value in inputs if isinstance(value, Factored)]
    for weight in weights:
        if not weight.watched:
            raise _unsupported(weight.path, eqn.primitive.name)
        context.saw(weight, Use(eqn.primitive.name))
    plain = [value.weight if isinstance(value, Factored) else value for value in inputs]
    jaxpr = jax.make_jaxpr(lambda: None)().jaxpr
    return _apply_plain(jaxpr, eqn, plain)


def _unsupported(path: str, primitive: str) -> JloraError:
    return JloraError(
        f"{path}: expected to be used in a matrix product or a table lookup, found it in the primitive"
        f" {primitive!r}, for which there is no low-rank rule. Take the leaf out of target_modules, or train"
        " it whole by modules_to_save."
    )


def _whole(result: Any) -> Any:
    if isinstance(result, Factored):
        raise _unsupported(result.path, "return")
    return result


def _dot(context: _Context, params: dict, inputs: list) -> jax.Array | None:
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


def _lookup(context: _Context, params: dict, inputs: list) -> jax.Array | None:
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


def _jit(context: _Context, params: dict, inputs: list) -> list:
    inner = context.enter()
    jaxpr, consts = compat.closed(params["jaxpr"])

    def run(*values: Any) -> list:
        return _evaluate(inner, jaxpr, consts, values)

    run.__name__ = params["name"]
    return jax.jit(run, inline=params["inline"])(*inputs)


def _checkpoint(context: _Context, params: dict, inputs: list) -> list:
    inner = context.enter()
    jaxpr, consts = compat.closed(params["jaxpr"])

    def run(*values: Any) -> list:
        return _evaluate(inner, jaxpr, consts, values)

    return jax.checkpoint(run, prevent_cse=params["prevent_cse"], policy=params["policy"])(*inputs)


def _scan(context: _Context, params: dict, inputs: list) -> list:
    consts, carry, over = compat.scan_parts(params, inputs)
    jaxpr, jaxpr_consts = compat.closed(params["jaxpr"])
    inner = context.enter()
    if any(isinstance(value, Factored) for value in carry):
        carry = [_whole(value) for value in carry]
    sliced = [slice_leading(value) if isinstance(value, Factored) else (value, None) for value in over]

    def body(state: tuple, slices: tuple) -> tuple:
        count, carry = state
        seen = [
            dataclasses.replace(like, weight=x.weight, a=x.a, b=x.b) if like is not None else x
            for x, (_, like) in zip(slices, sliced, strict=True)
        ]
        results = _evaluate(inner.at(count), jaxpr, jaxpr_consts, [*consts, *carry, *seen])
        results = [_whole(result) for result in results]
        return (count + jnp.int32(1), results[: len(carry)]), results[len(carry) :]

    start = (jnp.int32(0), list(carry))
    xs = tuple(outer for outer, _ in sliced)
    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    collected: list
    (_, carry), collected = lax.scan(body, start, xs, **options)
    return [*carry, *collected]


def _while(context: _Context, params: dict, inputs: list) -> list:
    tests, steps = params["cond_nconsts"], params["body_nconsts"]
    test_consts, step_consts, carry = inputs[:tests], inputs[tests : tests + steps], inputs[tests + steps :]
    test, test_jaxpr_consts = compat.closed(params["cond_jaxpr"])
    step, step_jaxpr_consts = compat.closed(params["body_jaxpr"])
    inner = context.enter()

    def test_fn(state: tuple) -> jax.Array:
        return _evaluate(inner.at(state[0]), test, test_jaxpr_consts, [*test_consts, *state[1]])[0]

    def step_fn(state: tuple) -> tuple:
        results = _evaluate(inner.at(state[0]), step, step_jaxpr_consts, [*step_consts, *state[1]])
        return state[0] + jnp.int32(1), [_whole(result) for result in results]

    return lax.while_loop(test_fn, step_fn, (jnp.int32(0), [_whole(value) for value in carry]))[1]


def _cond(context: _Context, params: dict, inputs: list) -> list:
    index, *operands = inputs
    inner = context.enter()

    def branch(closed: Any) -> Callable:
        jaxpr, consts = compat.closed(closed)
        return lambda *values: [_whole(r) for r in _evaluate(inner, jaxpr, consts, values)]

    return lax.switch(index, [branch(closed) for closed in params["branches"]], *operands)
