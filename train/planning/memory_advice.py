"""Suggests which settings to reduce if a run does not fit into memory."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import jax

from jlora.errors import JloraError
from train.config.run_config import RunConfig
from train.planning.parameter_table import align

_OUT_OF_MEMORY = re.compile("RESOURCE_EXHAUSTED|out of memory", re.IGNORECASE)


@contextlib.contextmanager
def explain_out_of_memory(what_helps: Callable[[], str], when: str = "") -> Iterator[None]:
    """Turns out-of-memory errors inside the block into a JloraError with advice; other errors are raised unchanged.

    Args:
      what_helps: returns the advice; called only after such an error.
      when: where in the run the block is, such as " after the last step".

    Raises:
      JloraError: the block raised MemoryError, or a JaxRuntimeError that says RESOURCE_EXHAUSTED or "out of memory".
        The message is "out of memory{when}: ", the error's first line, and the advice on the next line.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        reason = str(error).strip().split("\n")[0]
        raise JloraError(f"out of memory{when}: {reason}\n{what_helps()}") from error


def advice(config: RunConfig, mesh: Mapping[str, int] | None = None, *, may_quantize: bool = False) -> str:
    """Lists the settings that can be reduced in this config, the cheapest first, as command line arguments.

    There is a line for each that applies: train.batch_size (half, with more gradient_accumulation_steps),
    train.remat=true, quantize=nf4, train.dtype=bfloat16, mesh.data=1 (with more fsdp), mesh.adapters=inherit,
    method=lora, data.max_length (half), train.eval_batch_size (no more than train.batch_size). If none does, the text
    says so.

    Args:
      config: its `method`, `train`, `mesh.adapters` and `data.max_length` are read.
      mesh: {axis: size} of several devices, for data, fsdp and tensor; None for one device.
      may_quantize: whether the base could be quantized but is not.
    """
    train, length = config.train, config.data.max_length
    sizes = mesh or {"data": 1, "fsdp": 1, "tensor": 1}
    row_parts, shared = sizes["data"] * sizes["fsdp"], sizes["fsdp"] * sizes["tensor"]
    half = math.ceil(train.batch_size / 2 / row_parts) * row_parts
    parts = math.ceil(train.batch_size * train.gradient_accumulation_steps / half)
    offers = [
        (
            half < train.batch_size,
            f"train.batch_size={half} train.gradient_accumulation_steps={parts}",
            "half the activations, as many rows a step or a few more",
        ),
        (not train.remat, "train.remat=true", "activations of a layer are computed again instead of kept"),
        (may_quantize, "quantize=nf4", "the base in about 4 bits a weight"),
        (train.dtype == "float32", "train.dtype=bfloat16", "activations in half the bytes"),
        (
            sizes["data"] > 1,
            f"mesh.data=1 mesh.fsdp={sizes['data'] * sizes['fsdp']} mesh.tensor={sizes['tensor']}",
            "the base split over the devices that now have it whole",
        ),
        (
            shared > 1 and config.mesh.adapters == "replicated" and config.method == "lora",
            "mesh.adapters=inherit",
            "adapter and optimizer state split as the base is",
        ),
        (config.method == "full", "method=lora", "no optimizer state of the base"),
        (length >= 8, f"data.max_length={length // 2}", f"shorter rows, now {length}"),
        (
            train.eval_batch_size > train.batch_size,
            f"train.eval_batch_size={train.batch_size}",
            f"where evaluation fails, now {train.eval_batch_size}",
        ),
    ]
    lines = [(f"  {arguments}", saved) for possible, arguments, saved in offers if possible]
    if not lines:
        return "Nothing in this configuration can be turned down: take a smaller model, or more devices"
    return f"Turn down one of these:\n{align(lines, right=[])}"


def how_to_end(config: RunConfig, folder: Path) -> str:
    """Says what is complete of a run whose merged model did not fit into memory, and how to continue.

    With method lora: `folder`/adapter is, and `jlora export` can merge it elsewhere; with others only the checkpoints
    are.
    """
    if config.method != "lora":
        return "The checkpoints are complete: --resume goes on from the last step, on more devices by mesh.fsdp"
    adapter = folder / "adapter"
    return (
        f"{adapter} is complete. --resume export.merged=false ends the run without merged/; on a machine with more\n"
        f"memory make it with\n"
        f"  jlora export --adapter {adapter} --out MERGED"
    )
