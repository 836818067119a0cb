"""Rules of nested functions with a factored weight as input: jit, checkpoint, scan, while, cond and shard_map.

The nested jaxpr is evaluated by the interpreter, inside JAX's public function of the same name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jlora.errors import JloraError
from jlora.transform import jax_versions
from jlora.transform.adapted_weight import AdaptedWeight, Role, slice_leading, with_arrays, with_formed_weight
from jlora.transform.context import Context

Evaluate = Callable[[Context, Any, list], list]
"""(context, jaxpr, values of its inputs) -> values of its outputs; some may be AdaptedWeight."""


def _jit(evaluate: Evaluate, context: Context, params: dict, inputs: list) -> list:
    _refuse_shardings(params, inputs)
    run = _running_once(evaluate, context, params["jaxpr"])
    run.__name__ = params["name"]
    return jax.jit(run, inline=params["inline"])(*inputs)


def _refuse_shardings(params: dict, inputs: list) -> None:
    given = [s for s in (*params["in_shardings"], *params["out_shardings"]) if isinstance(s, jax.sharding.Sharding)]
    factored = [value for value in inputs if isinstance(value, AdaptedWeight) and value.role is not Role.OBSERVED]
    if given and factored:
        paths = [update.path for value in factored for update in value.updates]
        raise JloraError(
            f"{', '.join(paths) or 'a quantized weight'}: expected a jit without shardings inside of the adapted"
            f" function, found {params['name']!r} with {given[0]}. Give the shardings to the jit around the adapted"
            " function."
        )


def _checkpoint(evaluate: Evaluate, context: Context, params: dict, inputs: list) -> list:
    run = _running_once(evaluate, context, params["jaxpr"])
    return jax.checkpoint(run, prevent_cse=params["prevent_cse"], policy=params["policy"])(*inputs)


def _running_once(evaluate: Evaluate, context: Context, jaxpr: Any) -> Callable[..., list]:
    """Returns the nested function. JAX may trace it more than once, and it draws the same keys each time."""
    before = context.drawn.copy()

    def run(*values: Any) -> list:
        inner = context.once(before)
        results = evaluate(inner, jaxpr, list(values))
        context.drawn |= inner.drawn
        return results

    return run


def _scan(evaluate: Evaluate, context: Context, params: dict, inputs: list) -> list:
    consts, start, over = jax_versions.scan_parts(params, inputs)
    inner = context.enter()
    sliced = [slice_leading(value) if isinstance(value, AdaptedWeight) else (value, None) for value in over]

    def body(state: tuple, slices: tuple) -> tuple:
        count, carry = state
        seen = [x if like is None else with_arrays(like, x) for x, (_, like) in zip(slices, sliced, strict=True)]
        results = evaluate(inner.at(count), params["jaxpr"], [*consts, *carry, *seen])
        results = [inner.whole(result, "a result of scan") for result in results]
        return (count + jnp.int32(1), results[: len(carry)]), results[len(carry) :]

    carry = [context.whole(value, "the carry of scan") for value in start]
    xs = tuple(outer for outer, _ in sliced)
    options = {name: params[name] for name in ("length", "reverse", "unroll")}
    collected: list
    (_, carry), collected = lax.scan(body, (jnp.int32(0), carry), xs, **options)
    return [*carry, *collected]


def _while(evaluate: Evaluate, context: Context, params: dict, inputs: list) -> list:
    tests, steps = params["cond_nconsts"], params["body_nconsts"]
    test_consts, step_consts, start = inputs[:tests], inputs[tests : tests + steps], inputs[tests + steps :]
    test_context, step_context = context.enter(), context.enter()

    def test(state: tuple) -> jax.Array:
        count, carry = state
        return evaluate(test_context.at(count), params["cond_jaxpr"], [*test_consts, *carry])[0]

    def step(state: tuple) -> tuple:
        count, carry = state
        results = evaluate(step_context.at(count), params["body_jaxpr"], [*step_consts, *carry])
        return count + jnp.int32(1), [step_context.whole(result, "a result of while") for result in results]

    carry = [context.whole(value, "the carry of while") for value in start]
    return lax.while_loop(test, step, (jnp.int32(0), carry))[1]


def _cond(evaluate: Evaluate, context: Context, params: dict, inputs: list) -> list:
    index, *operands = inputs
    inner = context.enter()

    def branch(jaxpr: Any) -> Callable[..., list]:
        return lambda *values: [
            inner.whole(result, "a result of cond") for result in evaluate(inner, jaxpr, list(values))
        ]

    return lax.switch(index, [branch(jaxpr) for jaxpr in params["branches"]], *operands)


def _shard_map(evaluate: Evaluate, context: Context, params: dict, inputs: list) -> list:
    inner = context.enter()
    key, inner = inner.key, dataclasses.replace(inner, key=None)
    inputs = [with_formed_weight(value) if isinstance(value, AdaptedWeight) else value for value in inputs]

    def run(key: jax.Array | None, *values: Any) -> list:
        results = evaluate(dataclasses.replace(inner, key=key), params["jaxpr"], list(values))
        return [inner.whole(result, "a result of shard_map") for result in results]

    specs = [_specs(value, spec) for value, spec in zip(inputs, params["in_specs"], strict=True)]
    mapped = jax.shard_map(
        run,
        mesh=params["mesh"],
        in_specs=(PartitionSpec(), *specs),
        out_specs=list(params["out_specs"]),
        axis_names=set(params["newly_manual_axes"]),
        check_vma=params["check_vma"],
    )
    return mapped(key, *inputs)


def _specs(value: Any, spec: PartitionSpec) -> Any:
    """Applies the spec of a weight's dims to its factors and gain, on the dims over which they vary."""
    if not isinstance(value, AdaptedWeight):
        return spec
    names = (*spec, *[None] * (len(value.shape) - len(spec)))

    def where_varying(shape: tuple[int, ...]) -> PartitionSpec:
        return PartitionSpec(*(None if size == 1 else name for name, size in zip(names, shape, strict=True)))

    def of_factor(factor: jax.Array) -> Any:
        return PartitionSpec(None, *where_varying(factor.shape[1:]))

    gain = None if value.gain is None else where_varying(value.gain.shape)
    updates = tuple(update.change_factors(of_factor) for update in value.updates)
    specs: dict[str, Any] = {"weight": spec, "updates": updates, "gain": gain}
    return dataclasses.replace(value, **specs)


CONTROL_FLOW: dict[str, Callable[[Evaluate, Context, dict, list], list]] = {
    **dict.fromkeys(jax_versions.JIT, _jit),
    **dict.fromkeys(jax_versions.CHECKPOINT, _checkpoint),
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
}
"""{primitive: rule}."""
