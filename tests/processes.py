"""Several processes of a training command over loopback, as a launcher would start them."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import tiny

KILLED = """
import importlib, os, signal, sys
from train import loop

batches = loop.batches

def killing(*arguments):
    for number, batch in enumerate(batches(*arguments), 1):
        if number == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch

loop.batches = killing
sys.exit(importlib.import_module(sys.argv[1] + ".__main__").main(sys.argv[3:]))
"""
"""A program: argv is the command's module, the step whose batch SIGKILL comes with, and the command's arguments."""


class Ended(NamedTuple):
    """A process after its end: exit code (minus the signal's number) and what it wrote."""

    code: int
    output: str


def run(program: str, arguments: Sequence[str], count: int = 2, *, kill: tuple[int, int] | None = None) -> list[Ended]:
    """Runs `program` (train.classify, train.lm) in so many processes of one device each.

    Args:
      kill: (process, step): SIGKILL ends this process when the batch of this step comes, counted from 1.
    """
    started = [
        subprocess.Popen(
            [*_command(program, kill, index), *arguments, *_flags(port, index, count)],
            env=tiny.environment(),
            cwd=tiny.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for port in [_free_port()]
        for index in range(count)
    ]
    try:
        return [
            Ended(process.wait(), output) for process in started for output in [process.communicate(timeout=600)[0]]
        ]
    finally:
        for process in started:
            process.kill()


def _command(program: str, kill: tuple[int, int] | None, index: int) -> list[str]:
    if kill is None or kill[0] != index:
        return [sys.executable, "-m", program]
    return [sys.executable, "-c", KILLED, program, str(kill[1])]


def _flags(port: int, index: int, count: int) -> list[Any]:
    return ["--coordinator", f"127.0.0.1:{port}", "--process", str(index), "--processes", str(count)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
