"""Handles the differences between JAX 0.10 (Python 3.11) and 0.11 (Python 3.12): primitives and their parameters."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax

JIT = frozenset({"jit", "pjit"})
CHECKPOINT = frozenset({"checkpoint", "remat", "remat2"})


def split_closed_jaxpr(jaxpr: Any) -> tuple[Any, tuple]:
    """Returns (jaxpr, constants) of an equation's parameter, closed or open (JAX 0.11 no longer distinguishes them)."""
    return (jaxpr.jaxpr, tuple(jaxpr.consts)) if hasattr(jaxpr, "consts") else (jaxpr, ())


def scan_parts(params: dict[str, Any], values: list) -> tuple[list, list, list]:
    """Splits the operands of a scan, `values`, into lists (constants, initial carry, scanned arrays), in their order.

    `params` are the parameters of the scan's equation, which say how many of each there are.
    """
    if "ft_in" in params:  # JAX 0.11: three trees in place of two numbers
        consts, carry, _ = (len(part) for part in params["ft_in"].unpack())
    else:
        consts, carry = params["num_consts"], params["num_carry"]
    return values[:consts], values[consts : consts + carry], values[consts + carry :]


def context_of(eqn: Any) -> AbstractContextManager:
    """Returns a context manager that sets the mesh under which an equation was traced; without one it does nothing.

    `auto_axes` changes the mesh without an equation of its own.
    """
    return nullcontext() if eqn.ctx.cur_abstract_mesh.empty else eqn.ctx.manager


def varying_axes(x: jax.Array) -> tuple[str, ...]:
    """Returns the mesh axes along which the shards of `x` differ inside a shard_map; () outside of one."""
    return tuple(sorted(getattr(jax.typeof(x), "vma", ())))
