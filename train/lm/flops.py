"""The matrix products of a program, and how fast this machine does them."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

_LARGEST = 8192
_LONG_ENOUGH = 0.02  # seconds


def equations(jaxpr: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
    """(equation, how often it runs) of a jaxpr and all that are inside it; a while loop's count is unknown, 1."""
    for equation in jaxpr.eqns:
        yield equation, times
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                if hasattr(inner, "eqns"):
                    yield from equations(inner, times * repeats)


def matrix_flops(jaxpr: Any) -> int:
    """Multiplications and additions of all matrix products; XLA's `cost_analysis` counts a loop's body once."""
    return sum(times * _flops(equation) for equation, times in equations(jaxpr))


def matrix_rate(dtype: Any) -> float:
    """FLOP/s of a square matrix product of `dtype` on this machine, the best of a few; takes less than a second."""
    product = jax.jit(lambda x: jnp.matmul(x, x))
    size, seconds = 512, 0.0
    while True:
        x = jnp.ones((size, size), dtype)
        product(x).block_until_ready()
        seconds = min(_seconds(lambda x=x: product(x).block_until_ready()) for _ in range(3))
        if seconds > _LONG_ENOUGH or size == _LARGEST:
            return 2 * size**3 / seconds
        size *= 2


def _flops(equation: Any) -> int:
    if equation.primitive.name != "dot_general":
        return 0
    (contracted, _), _ = equation.params["dimension_numbers"]
    summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return 2 * summed * math.prod(equation.outvars[0].aval.shape)


def _seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
