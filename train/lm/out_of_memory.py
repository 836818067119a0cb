"""What to turn down where a run needs more memory than there is."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from jlora.errors import JloraError
from train.lm.config import LMConfig
from train.summary import align

_OUT_OF_MEMORY = re.compile("RESOURCE_EXHAUSTED|out of memory", re.IGNORECASE)


def advice(config: LMConfig, row_parts: int = 1) -> str:
    """What can be turned down in this config, the cheapest first, as arguments of the command line.

    Args:
      row_parts: in how many parts the devices share a batch.
    """
    train, length = config.train, config.data.max_length
    half = math.ceil(train.batch_size / 2 / row_parts) * row_parts
    parts = math.ceil(train.batch_size * train.gradient_accumulation_steps / half)
    may_quantize = config.method == "lora" and config.quantize != "nf4" and not config.lora.is_residual
    offers = [
        (
            half < train.batch_size,
            f"train.batch_size={half} train.gradient_accumulation_steps={parts}",
            "half the activations, as many rows a step or a few more",
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
def explain_out_of_memory(config: LMConfig, figures: Callable[[], str], row_parts: int = 1) -> Iterator[None]:
    """Around what may need more memory than there is: says how much is needed and what to turn down.

    Args:
      config: of the run.
      figures: the text of `memory_table`, asked for only then.
      row_parts: as in `advice`.

    Raises:
      JloraError: the device or the host had no memory left inside the block.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        lines = [f"out of memory: {_reason(error)}"]
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # XLA may refuse to compile what cannot fit
            lines.append(f"A training step takes:\n{figures()}")
        raise JloraError("\n".join([*lines, "Turn down one of these:", advice(config, row_parts)])) from error


@contextlib.contextmanager
def explain_at_the_end(config: LMConfig, folder: Path) -> Iterator[None]:
    """Around the export of the merged model: says that the training is not lost, and how to go on.

    Raises:
      JloraError: the device or the host had no memory left inside the block.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        lines = [f"out of memory after the last step, while merged/ was made or read back: {_reason(error)}"]
        if config.method == "lora":
            adapter = folder / "adapter"
            lines += [
                f"{adapter} is whole. --resume export.merged=false ends the run without merged/; elsewhere make it by",
                f"  python -m train.export --adapter {adapter} --out MERGED",
            ]
        else:
            lines.append("The checkpoints are whole: --resume goes on from the last step, on more devices by mesh.fsdp")
        raise JloraError("\n".join(lines)) from error


def _reason(error: Exception) -> str:
    """Its first line; an error that says nothing of memory is raised again."""
    if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
        raise error
    return str(error).strip().split("\n")[0]
