"""What a training step holds on the device, and what to turn down where that is too much."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from jlora.errors import JloraError
from train.lm.config import LMConfig
from train.lm.flops import equations
from train.summary import align

_MIB = 2**20
_OUT_OF_MEMORY = re.compile("RESOURCE_EXHAUSTED|out of memory", re.IGNORECASE)


class Memory(NamedTuple):
    """Bytes on the device in one training step, as XLA has planned it.

    base, adapter, optimizer: the arrays, packed as they lie there.
    activations: what lives during the step alone, its gradients too.
    logits: of these, the largest array of logits that is formed; None where it was not looked for.
    in_all: everything, the batch too.
    """

    base: int
    adapter: int
    optimizer: int
    activations: int
    logits: int | None
    in_all: int


def step_memory(step: Any, arguments: Sequence[Any], vocab_size: int) -> Memory:
    """Compiles the step and asks XLA what it takes; nothing is computed and no weights are needed.

    Args:
      step: a jitted train step, as `train.step.make_train_step` gives it.
      arguments: its (state, frozen, base, batch, key), arrays or ShapeDtypeStructs.
      vocab_size: the size of the logits' last axis.
    """
    traced = step.trace(*arguments)
    return compiled_memory(traced.lower().compile(), arguments, _largest_logits(traced.jaxpr, vocab_size))


def compiled_memory(compiled: Any, arguments: Sequence[Any], logits: int | None = None) -> Memory:
    """What a compiled step takes of one device; of a mesh, whose devices each hold their part of the arguments."""
    plan = compiled.memory_analysis()
    state, frozen, base, *_ = arguments
    in_all = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
    return Memory(
        base=held_bytes(base),
        adapter=held_bytes((state.trainable, frozen)),
        optimizer=held_bytes(state.optimizer),
        activations=plan.temp_size_in_bytes,
        logits=logits,
        in_all=in_all + plan.temp_size_in_bytes,
    )


def memory_table(memory: Memory) -> str:
    """A line for each part, in MiB."""
    notes = {"activations": "with gradients, in the step alone", "logits": "of these, at a time"}
    lines = [
        (name.replace("_", " "), f"{value / _MIB:,.1f} MiB", notes.get(name, ""))
        for name, value in memory._asdict().items()
        if value is not None
    ]
    return align(lines, right=[1])


def advice(config: LMConfig) -> str:
    """What can be turned down in this config, the cheapest first, as arguments of the command line."""
    train, length = config.train, config.data.max_length
    half = math.ceil(train.batch_size / 2)
    parts = math.ceil(train.batch_size * train.gradient_accumulation_steps / half)
    may_quantize = config.method == "lora" and config.quantize != "nf4" and not config.lora.is_residual
    offers = [
        (
            train.batch_size > 1,
            f"train.batch_size={half} train.gradient_accumulation_steps={parts}",
            "half the activations, the same step",
        ),
        (not train.remat, "train.remat=true", "activations of a layer are computed again instead of kept"),
        (may_quantize, "quantize=nf4", "the base in about 4 bits a weight"),
        (train.dtype == "float32", "train.dtype=bfloat16", "activations in half the bytes"),
        (config.method == "full", "method=lora", "no optimizer state of the base"),
        (length >= 8, f"data.max_length={length // 2}", f"shorter rows, now {length}"),
        (
            train.eval_batch_size > train.batch_size,
            f"train.eval_batch_size={train.batch_size}",
            f"where evaluation fails, now {train.eval_batch_size}",
        ),
    ]
    return align([(f"  {arguments}", saved) for possible, arguments, saved in offers if possible], right=[])


@contextlib.contextmanager
def explain_out_of_memory(config: LMConfig, figures: Callable[[], str]) -> Iterator[None]:
    """Around what may need more memory than there is: says how much is needed and what to turn down.

    Args:
      config: of the run.
      figures: the text of `memory_table`, asked for only then.

    Raises:
      JloraError: the device or the host had no memory left inside the block.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        reason = str(error).strip().split("\n")[0]
        lines = [f"out of memory: {reason}"]
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # XLA may refuse to compile what cannot fit
            lines.append(f"A training step takes:\n{figures()}")
        raise JloraError("\n".join([*lines, "Turn down one of these:", advice(config)])) from error


def held_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree on the device: two 4-bit numbers share one."""
    plan: Any = jax.jit(lambda tree: (), keep_unused=True).lower(tree).compile().memory_analysis()
    return plan.argument_size_in_bytes


def _largest_logits(jaxpr: Any, vocab_size: int) -> int:
    """Of all arrays (B, T, vocab) that the program forms, the bytes of the largest."""
    formed = (variable.aval for equation, _ in equations(jaxpr) for variable in equation.outvars)
    logits = (x for x in formed if getattr(x, "ndim", 0) >= 3 and x.shape[-1] == vocab_size)
    return max((math.prod(x.shape) * x.dtype.itemsize for x in logits), default=0)
