"""Sides that live in processes of their own and take turns, so that each has its own memory and the same machine.

A side's process makes everything ready, says so, and takes one step for each line that it is sent.
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

from benchmarks.timing import timed


def serve(start: Callable[[], tuple[Callable[[], Any], dict[str, Any]]]) -> None:
    """What the process of a side does: `start` makes (step, facts), and every line on stdin takes a step.

    Lines on stdout: {"facts"} once, {"seconds", "value"} of each step, {"peak_bytes"} of the steps at the end. Whatever
    else is printed goes to stderr.
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

    The first step of each side, in which caches fill, is kept apart. A round calls each side once, another one first
    each time. No round begins that would end after `seconds` from now, but for the first one. With `rounds` 0 the first
    step is what is measured.
    """
    deadline = time.monotonic() + seconds
    with contextlib.ExitStack() as held:
        running, found = dict[str, _Side](), dict[str, dict[str, Any]]()
        for name, command in sides.items():  # one after the other: they time their own compilation
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
        """Waits until it is ready, and takes its first step."""
        ready = self._answer()
        if ready is None:
            return {"failed": f"ended with code {self._process.wait()}"}
        first = self._ask()
        if first is None:
            return {"failed": f"ended with code {self._process.wait()} in its first step"}
        return {**ready, "first": first["seconds"], "seconds": [], "values": [first["value"]]}

    def step(self, found: dict[str, Any]) -> None:
        """Takes a step and adds it to what was found."""
        answer = self._ask()
        if answer is None:
            raise RuntimeError(f"{' '.join(self._command)}: expected a step, the process ended")
        found["seconds"].append(answer["seconds"])
        found["values"].append(answer["value"])

    def end(self) -> dict[str, Any]:
        """{"peak_bytes"}"""
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
    """From here on `peak_bytes` counts (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most memory that this process has held (Linux)."""
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak) * 1024
