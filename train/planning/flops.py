"""Counts the matrix products of a program, and measures how fast this machine computes them."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jlora.models.attention.blockwise import BLOCKS
from train.planning.hlo import Instruction, walk_executed

_LARGEST = 8192
_LONG_ENOUGH = 0.02  # seconds


def equations(jaxpr: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
    """Yields (equation, how often it runs) of a jaxpr and of all nested ones; a while loop counts once.

    If the platform selects between branches, only the default branch counts; of other branches all do. An equation that
    contains a jaxpr is yielded too, before those inside.

    Args:
      jaxpr: a Jaxpr or ClosedJaxpr.
      times: how often it runs itself; the factor of every number.
    """
    for equation in jaxpr.eqns:
        yield equation, times
        repeats = equation.params["length"] if equation.primitive.name == "scan" else 1
        by_platform = equation.params.get("branches_platforms") is not None
        for name, value in equation.params.items():
            value = value[-1:] if by_platform and name == "branches" else value
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                if hasattr(inner, "eqns"):
                    yield from equations(inner, times * repeats)


def matrix_flops(jaxpr: Any) -> int:
    """Counts multiplications and additions of all matrix products; XLA's `cost_analysis` counts loop bodies once.

    A product (m, k) x (k, n) is 2 m k n, times the iterations of the scans around it; convolutions do not count.

    Args:
      jaxpr: a Jaxpr or ClosedJaxpr.
    """
    total = 0
    for equation, times in equations(jaxpr):
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += times * 2 * summed * math.prod(equation.outvars[0].aval.shape)
    return total


class Product(NamedTuple):
    """A matrix product on one device.

    Attributes:
      flops: of one run.
      numbers: how many are in its operands and its result; 0 for attention's blocks, which the kernel keeps on chip.
      times: how often it runs in one call of the program.
    """

    flops: int
    numbers: int
    times: int


def list_products(text: str) -> list[Product]:
    """Lists the products in a compiled program's text, `compiled.as_text()`; if it is partitioned, of one device.

    There is a Product for each instruction `dot`, in the order of the text. A scan of 5 steps over x (2, 3) @ w (3, 3)
    gives [Product(flops=36, numbers=21, times=5)].

    Raises:
      JloraError: a loop whose number of iterations the text does not say.
    """
    return [_product(instruction, times) for instruction, times in walk_executed(text) if instruction.opcode == "dot"]


def matrix_rate(dtype: Any) -> float:
    """Measures the FLOP/s of a square matrix product of `dtype` on this machine, the best of a few.

    It takes less than a second.
    """
    product = jax.jit(lambda x: jnp.matmul(x, x))
    size, seconds = 512, 0.0
    while True:
        x = jnp.ones((size, size), dtype)
        product(x).block_until_ready()
        seconds = min(_seconds(lambda x=x: product(x).block_until_ready()) for _ in range(3))
        if seconds > _LONG_ENOUGH or size == _LARGEST:
            return 2 * size**3 / seconds
        size *= 2


def _product(dot: Instruction, times: int) -> Product:
    (result,), (left, _) = dot.result, dot.operands
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.text)
    summed = math.prod(left.sizes[int(axis)] for axis in re.findall(r"\d+", contracted[1] if contracted else ""))
    numbers = sum(math.prod(array.sizes) for array in (*dot.operands, result))
    stays_on_chip = BLOCKS in dot.text
    return Product(2 * summed * math.prod(result.sizes), 0 if stays_on_chip else numbers, times)


def _seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
