"""How a step grows with tokens, layers and rank: python -m benchmarks.growth --axis temporaries|tokens|layers|ranks.

`temporaries` compiles SmolLM2's LoRA step and reads what it needs beside its arguments; nothing runs. The others run
steps of a model of SmolLM2's width: with 6 layers one row of 1k to 4k tokens, jlora and PEFT; 3 to 24 layers, rank 1
to 256 on 1 x 512 tokens, jlora. An exponent is the slope of the line through the logarithms.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.common.alternate import alternate
from benchmarks.common.timing import timed
from benchmarks.common.work import Work
from benchmarks.steps import command, make_inputs

_LENGTHS = (1024, 2048, 4096, 8192)
_LAYERS = (3, 6, 12, 24)
_RANKS = (1, 4, 16, 64, 256)
_SMALL = Work("smollm2-6-layers", 1, 512)


def main(argv: Sequence[str]) -> int:
    """Runs the command and prints its result as JSON; 0 is success."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--axis", choices=AXES, required=True)
    parser.add_argument("--rounds", metavar="N", type=int, default=5, help="rounds after the first (default 5)")
    parser.add_argument("--seconds", metavar="N", type=float, default=120, help="for the rounds (default 120)")
    flags = parser.parse_args(argv)
    print(json.dumps({"axis": flags.axis, **AXES[flags.axis](flags.rounds, flags.seconds)}))
    return 0


def exponent(xs: Sequence[float], ys: Sequence[float]) -> float:
    """p of y = c x^p, fitted by least squares to the logarithms."""
    return float(np.polyfit(np.log(xs), np.log(ys), 1)[0])


def temporaries(rounds: int, seconds: float) -> dict[str, Any]:
    """{"x": tokens, "bytes": temporaries of the compiled step, "compile_seconds"}; once, however long it takes."""
    import jax

    from benchmarks.sides.jax_side import batch_of, parts

    jax.config.update("jax_enable_compilation_cache", False)
    found: dict[str, list[Any]] = {"x": list(_LENGTHS), "bytes": [], "compile_seconds": []}
    for length in _LENGTHS:
        work = Work("smollm2", 1, length)
        make_inputs(work)
        step, state, frozen, base = parts(work, "lora")
        arguments = (state, frozen, base, batch_of(work), jax.random.key(0))
        spent, compiled = timed(lambda step=step, arguments=arguments: step.lower(*arguments).compile())
        found["bytes"].append(compiled.memory_analysis().temp_size_in_bytes)
        found["compile_seconds"].append(spent)
    return found


def tokens(rounds: int, seconds: float) -> dict[str, Any]:
    """{"x": tokens, "sides": {"lora", "peft": {"seconds": [[one a round] for each x], "peak_bytes": [...]}}}."""
    lengths = _LENGTHS[:-1]  # 8k are a piece of their own, with the whole model
    works = [dataclasses.replace(_SMALL, length=length) for length in lengths]
    return _measured(lengths, works, ("lora", "peft"), rounds, seconds)


def layers(rounds: int, seconds: float) -> dict[str, Any]:
    """As `tokens`, of jlora alone, with "compile_seconds": [...]."""
    works = [dataclasses.replace(_SMALL, model=f"smollm2-{number}-layers") for number in _LAYERS]
    return _measured(_LAYERS, works, ("lora",), rounds, seconds)


def ranks(rounds: int, seconds: float) -> dict[str, Any]:
    """As `layers`."""
    works = [dataclasses.replace(_SMALL, rank=rank) for rank in _RANKS]
    return _measured(_RANKS, works, ("lora",), rounds, seconds)


AXES: dict[str, Callable[[int, float], dict[str, Any]]] = {
    "temporaries": temporaries,
    "tokens": tokens,
    "layers": layers,
    "ranks": ranks,
}


def _measured(
    xs: Sequence[int], works: Sequence[Work], sides: Sequence[str], rounds: int, seconds: float
) -> dict[str, Any]:
    """All works at one x after the other; what is left of the time is shared by how long each is expected to take."""
    found = []
    deadline = time.monotonic() + seconds
    for index, work in enumerate(works):
        make_inputs(work)
        left = deadline - time.monotonic()
        commands = {side: command(work, side) for side in sides}
        found.append(alternate(commands, rounds, left * xs[index] / sum(xs[index:])))
    return {
        "x": list(xs),
        "sides": {
            side: {
                "seconds": [each[side]["seconds"] for each in found],
                "peak_bytes": [each[side]["peak_bytes"] for each in found],
                "compile_seconds": [each[side]["facts"].get("compile_seconds") for each in found],
            }
            for side in sides
        },
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
