"""Sides that run in processes of their own and take turns, so that each has its own memory on the same machine.

A side's process prepares everything, reports that it is ready, and takes one step for each line that it receives.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.timing import timed


def serve(start: Callable[[], tuple[Callable[[], Any], dict[str, Any]]]) -> None:
    """Runs the process of a side: `start` makes (step, facts), and every line on stdin takes a step.

    Lines on stdout: {"facts"} once, {"seconds", "value"} for each step, and {"peak_bytes"} of the steps at the end.
    Anything else that is printed goes to stderr.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**found: Any) -> None:
        print(json.dumps(found), file=answers, flush=True)

    step, facts = start()
    forget_peak()
    say(facts=facts)
    for _ in sys.stdin:
        seconds, value = timed(step)
        say(seconds=seconds, value=value)
    say(peak_bytes=peak_bytes())


def alternate(sides: dict[str, Sequence[str]], rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
    """{name: {"facts", "first": seconds, "seconds": [one a round], "values", "peak_bytes", or "failed": why}}.

    The first step of each side, which fills caches, is recorded separately. A round calls each side once, each round
    starting with another side. Except for the first, no round begins that would end more than `seconds` from now.
    With `rounds` 0 the first step is the measurement.
    """
    deadline = time.monotonic() + seconds
    with contextlib.ExitStack() as held:
        running, found = dict[str, _Side](), dict[str, dict[str, Any]]()
        for name, command in sides.items():  # one after the other, since each times its compilation
            running[name] = held.enter_context(_Side(command))
            found[name] = running[name].begin()
        alive = [name for name in running if "failed" not in found[name]]
        for number in range(rounds):
            begin = time.monotonic()
            first = number % max(1, len(alive))
            for name in alive[first:] + alive[:first]:
                running[name].step(found[name])
            if 2 * time.monotonic() - begin > deadline:
                break
        for name in alive:
            found[name] |= running[name].end() | ({} if rounds else {"seconds": [found[name]["first"]]})
    return found


class _Side:
    """The process of one side; a context manager that ends it."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command

    def __enter__(self) -> _Side:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([sys.executable, *self._command], stdin=pipe, stdout=pipe, text=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        self._process.wait()

    def begin(self) -> dict[str, Any]:
        """Waits until the side is ready, and takes its first step."""
        ready = self._answer()
        if ready is None:
            return {"failed": f"ended with code {self._process.wait()}"}
        first = self._ask()
        if first is None:
            return {"failed": f"ended with code {self._process.wait()} in its first step"}
        return {**ready, "first": first["seconds"], "seconds": [], "values": [first["value"]]}

    def step(self, found: dict[str, Any]) -> None:
        """Takes a step and adds its seconds and its value to `found`."""
        answer = self._ask()
        if answer is None:
            raise RuntimeError(f"{' '.join(self._command)}: expected a step, the process ended")
        found["seconds"].append(answer["seconds"])
        found["values"].append(answer["value"])

    def end(self) -> dict[str, Any]:
        """Ends the side's steps; returns {"peak_bytes"}."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._answer() or {}

    def _ask(self) -> dict[str, Any] | None:
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else None


def forget_peak() -> None:
    """Resets the peak that `peak_bytes` reports (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most memory, in bytes, that this process has held since `forget_peak` (Linux)."""
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak) * 1024
