"""Seconds from process start to the first training step: python -m benchmarks.first_step [--task T] [--rounds N].

`train.classify` on SST-2 (MiniLM) or `train.lm` on SmolLM2, cold and with a compilation cache that an earlier run
filled; beside SST-2 the script of benchmarks.classify.peft_script. A run is ended after its first step.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import epoch
from benchmarks.common.commands import timed_command
from benchmarks.common.timing import take_turns
from benchmarks.common.work import Work
from benchmarks.steps import make_inputs

TASKS = ("classify", "lm")


def main(argv: Sequence[str]) -> int:
    """Runs the command and prints its result as JSON; 0 is success."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_step", description=__doc__)
    parser.add_argument("--task", choices=TASKS, default="classify", help="(default classify)")
    parser.add_argument("--rounds", metavar="N", type=int, default=5, help="(default 5)")
    flags = parser.parse_args(argv)
    print(json.dumps(run(flags.task, flags.rounds)))
    return 0


def run(task: str, rounds: int) -> dict[str, Any]:
    """{"task", "sides": {"cold", "cached"[, "peft"]: {"seconds": [one a round], "cpu_seconds": [...]}}}."""
    make_inputs(Work("minilm", 32, 64))
    epoch.make_data()
    with tempfile.TemporaryDirectory() as cache:
        calls: dict[str, Callable[[], Any]] = {"cold": lambda: _cold(task), "cached": lambda: _start(task, cache)}
        if task == "classify":
            calls["peft"] = lambda: timed_command(epoch.script_command(cache, True), to_first_step=True)
        _start(task, cache)  # fills the cache
        turns = take_turns(calls, rounds)
    sides = {
        side: {
            "seconds": [result["first_step"] for _, result in found],
            "cpu_seconds": [result["cpu_seconds"] for _, result in found],
        }
        for side, found in turns.items()
    }
    return {"task": task, "sides": sides}


def _cold(task: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache:
        return _start(task, cache)


def _start(task: str, cache: str) -> dict[str, Any]:
    """A run up to its first step; tokenized rows and programs are cached under `cache`."""
    with tempfile.TemporaryDirectory() as folder:
        language_model = ["-m", "train.lm", "--config", "configs/smollm2.yaml", "--offline", f"output_dir={folder}/run"]
        command = epoch.training_command(folder, True, "auto") if task == "classify" else language_model
        return timed_command(command, {"XDG_CACHE_HOME": cache}, to_first_step=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
