"""Describes the memory and work of a run in advance."""

from __future__ import annotations

import math
from typing import Any

from train.cli.progress import clock
from train.loop.step import StepArguments
from train.planning.flops import matrix_flops
from train.planning.memory import memory_table, step_memory
from train.planning.parameter_table import facts_table


def describe_run(step: Any, arguments: StepArguments, *, vocab_size: int, steps: int | None, rate: float) -> str:
    """Describes a run in advance: the table of its memory (`memory_table`), then steps, tokens, work and time.

    Args:
      step: a jitted train step, from `train.loop.step.make_train_step`.
      arguments: ShapeDtypeStructs, with the longest batch; its tokens are the places of `batch.weights`.
      vocab_size: the size of the logits' last axis.
      steps: optimizer steps of the run; None if no data was read and the config does not say: the text says "unknown".
      rate: FLOP/s of a matrix product on this machine, from `train.planning.flops.matrix_rate`.
    """
    flops = matrix_flops(step.trace(*arguments).jaxpr)
    of_a_step = math.prod(arguments.batch.weights.shape)
    facts = [
        ("steps", "unknown, no data read" if steps is None else f"{steps:,}"),
        ("tokens", f"{of_a_step:,} a step at most"),
        ("work", f"{flops / 1e12:,.3g} TFLOP a step at most, in matrix products"),
        ("time", _time(flops / rate, rate, steps)),
    ]
    table = memory_table(step_memory(step, arguments, vocab_size))
    return f"{table}\n\n{facts_table(facts)}"


def _time(seconds: float, rate: float, steps: int | None) -> str:
    of_a_step = f"{seconds:.2g} s" if seconds < 60 else clock(seconds)
    in_all = "" if steps is None else f", {clock(seconds * steps)} in all"
    return f"about {of_a_step} a step{in_all}: an estimate, from the {rate / 1e9:,.0f} GFLOP/s just measured here"
