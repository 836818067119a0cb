"""Merge an adapter into a 1B model and write it: python -m benchmarks.merging [--rounds N].

`train.export` beside PEFT's merge_and_unload and save_pretrained, each in a process of its own, in bfloat16. The shape
is Llama 3.2 1B's with random weights, the adapter r 8 on the four projections of attention.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.common.commands import timed_command
from benchmarks.common.timing import take_turns
from benchmarks.common.work import Work
from benchmarks.steps import make_inputs

_WORK = Work("llama-1b", 1, 8)


def main(argv: Sequence[str]) -> int:
    """Runs the command and prints its result as JSON; 0 is success."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.merging", description=__doc__)
    parser.add_argument("--rounds", metavar="N", type=int, default=3, help="(default 3)")
    parser.add_argument("--peft", metavar="FOLDER", help=argparse.SUPPRESS)  # what PEFT's process is called with
    flags = parser.parse_args(argv)
    if flags.peft:
        _merge_with_peft(flags.peft)
        return 0
    print(json.dumps(run(flags.rounds)))
    return 0


def run(rounds: int) -> dict[str, Any]:
    """{"bytes": of the base, "sides": {side: [{"seconds", "cpu_seconds", "peak_bytes"}, one a round]}}."""
    make_inputs(_WORK)
    turns = take_turns({"jlora": partial(_in_a_folder, _jlora), "peft": partial(_in_a_folder, _peft)}, rounds)
    size = sum(file.stat().st_size for file in _WORK.base.glob("*.safetensors"))
    return {"bytes": size, "sides": {side: [result for _, result in found] for side, found in turns.items()}}


def _in_a_folder(command: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return timed_command(command(folder))


def _jlora(folder: str) -> list[str]:
    given = ["--adapter", str(_WORK.adapter), "--base", str(_WORK.base), "--out", f"{folder}/merged"]
    return ["-m", "train.export", *given, "--dtype", "bfloat16"]


def _peft(folder: str) -> list[str]:
    return ["-m", "benchmarks.merging", "--peft", folder]


def _merge_with_peft(folder: str) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    base = AutoModelForCausalLM.from_pretrained(_WORK.base, dtype=torch.bfloat16)
    merged = PeftModel.from_pretrained(base, _WORK.adapter).merge_and_unload()
    merged.save_pretrained(f"{folder}/merged")
    AutoTokenizer.from_pretrained(_WORK.base).save_pretrained(f"{folder}/merged")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
