"""A training step of several sides in turns: python -m benchmarks.steps --sides A,B --model NAME --rows N --length N

The sides are jlora's own (lora, full), other ways in JAX (qwix, dense, by hand) and PyTorch's (peft, compiled, torch
full). `NAME:bfloat16` is a side in another dtype than --dtype. Each side runs in a process of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import roofline
from benchmarks.common.alternate import alternate
from benchmarks.common.work import Work, add_flags

IN_JAX = ("lora", "full", "qwix", "dense", "by hand")
IN_PYTORCH = {"peft": "peft", "compiled": "compiled", "torch full": "full"}


def main(argv: Sequence[str]) -> int:
    """Runs the command and prints its result as JSON; 0 is success."""
    flags = _parser().parse_args(argv)
    print(json.dumps(run(Work.of(flags), flags.sides.split(","), flags.rounds, flags.seconds, apart=flags.apart)))
    return 0


def run(work: Work, sides: Sequence[str], rounds: int, seconds: float, *, apart: bool = False) -> dict[str, Any]:
    """{"work", "apart", "must": FLOPs and bytes, "sides": what `turns.alternate` finds}.

    Args:
      seconds: no round begins that would end later. apart: run one side after the other, for sides that do not fit into
        the memory together; their rounds are then not paired.
    """
    make_inputs(work)
    commands = {side: command(work, side) for side in sides}
    groups = [[side] for side in sides] if apart else [list(sides)]
    found: dict[str, Any] = {}
    for group in groups:
        found |= alternate({side: commands[side] for side in group}, rounds, seconds / len(groups))
    return {"work": dataclasses.asdict(work), "apart": apart, "must": roofline.step(work), "sides": found}


def command(work: Work, side: str) -> list[str]:
    """Python's arguments for the process that runs this side of the work."""
    name, _, dtype = side.partition(":")
    work = dataclasses.replace(work, dtype=dtype or work.dtype)
    module = "jax_side" if name in IN_JAX else "torch_side"
    return ["-m", f"benchmarks.sides.{module}", "--side", IN_PYTORCH.get(name, name), *work.flags()]


def make_inputs(work: Work) -> None:
    """Writes the base and the adapter of the work if they are missing, in a process of its own."""
    if not (work.base.exists() and work.adapter.exists()):
        command = [sys.executable, "-m", "benchmarks.sides.make_inputs", *work.flags()]
        subprocess.run(command, check=True, stdout=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    add_flags(parser)
    parser.add_argument("--sides", metavar="A,B", default="lora,peft", help="(default lora,peft)")
    parser.add_argument("--rounds", metavar="N", type=int, default=5, help="rounds after the first (default 5)")
    parser.add_argument("--seconds", metavar="N", type=float, default=120, help="for the rounds (default 120)")
    parser.add_argument("--apart", action="store_true", help="one side after the other")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
