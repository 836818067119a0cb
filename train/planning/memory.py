"""Computes the memory of a training step on the device."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax

from train.loop.step import StepArguments
from train.planning.flops import equations
from train.planning.parameter_table import align

_MIB = 2**20


class Memory(NamedTuple):
    """Bytes on the device in one training step, as planned by XLA; `step_memory` and `measure_compiled` make it.

    Attributes:
      base, adapter, optimizer: the arrays, as packed on the device.
      activations: everything that exists only during the step, including gradients.
      logits: the largest array of logits, which is part of the activations; None if it was not searched.
      in_all: everything, including the batch.
    """

    base: int
    adapter: int
    optimizer: int
    activations: int
    logits: int | None
    in_all: int


def step_memory(step: Any, arguments: StepArguments, vocab_size: int) -> Memory:
    """Compiles the step and returns XLA's memory plan; nothing is computed and no weights are needed.

    Args:
      step: a jitted train step, from `train.loop.step.make_train_step`.
      arguments: arrays or ShapeDtypeStructs.
      vocab_size: the size of the logits' last axis.
    """
    traced = step.trace(*arguments)
    return measure_compiled(traced.lower().compile(), arguments, _largest_logits(traced.jaxpr, vocab_size))


def measure_compiled(compiled: Any, arguments: StepArguments, logits: int | None = None) -> Memory:
    """Returns the memory of a compiled step on one device; on a mesh each device holds its part of the arguments.

    Args:
      compiled: the compiled train step, a `jax.stages.Compiled`; its `memory_analysis()` is read.
      arguments: what it was compiled for, arrays or ShapeDtypeStructs. `adapter` is `state.trainable` and `frozen`.
      logits: bytes of the largest logits, taken over into the result.
    """
    plan = compiled.memory_analysis()
    state = arguments.state
    # XLA's sum of arguments lacks unused ones: with `method: full` the base, which the run still has in memory.
    in_all = count_bytes(arguments) + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return Memory(
        base=count_bytes(arguments.base),
        adapter=count_bytes((state.trainable, arguments.frozen)),
        optimizer=count_bytes(state.optimizer),
        activations=plan.temp_size_in_bytes,
        logits=logits,
        in_all=in_all + plan.temp_size_in_bytes,
    )


def memory_table(memory: Memory) -> str:
    """Formats the memory as a table with a line for each field that is not None: its name, its MiB, and a note on some.

    The numbers have one decimal and are right-aligned: `base         12.5 MiB`.
    """
    notes = {"activations": "with gradients, in the step alone", "logits": "of these, at a time"}
    lines = [
        (name.replace("_", " "), f"{value / _MIB:,.1f} MiB", notes.get(name, ""))
        for name, value in memory._asdict().items()
        if value is not None
    ]
    return align(lines, right=[1])


def count_bytes(tree: Any) -> int:
    """Returns the bytes of all arrays of a tree on the device; two 4-bit numbers share a byte.

    Leaves are arrays or ShapeDtypeStructs; of sharded ones only one device's part counts.
    """
    plan: Any = jax.jit(lambda tree: (), keep_unused=True).lower(tree).compile().memory_analysis()
    return plan.argument_size_in_bytes


def _largest_logits(jaxpr: Any, vocab_size: int) -> int:
    """Returns the bytes of the largest array (B, T, vocab) that the program computes."""
    formed = (variable.aval for equation, _ in equations(jaxpr) for variable in equation.outvars)
    logits = (x for x in formed if getattr(x, "ndim", 0) >= 3 and x.shape[-1] == vocab_size)
    return max((math.prod(x.shape) * x.dtype.itemsize for x in logits), default=0)
