"""Several processes of a training command over loopback, as a launcher would start them."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import tiny

SIGNALLED = """
import importlib, os, sys
from train import loop

batches = loop.batches

def signalling(*arguments):
    for number, batch in enumerate(batches(*arguments), 1):
        if number == int(sys.argv[2]):
            os.kill(os.getpid(), int(sys.argv[3]))
        yield batch

loop.batches = signalling
sys.exit(importlib.import_module(sys.argv[1] + ".__main__").main(sys.argv[4:]))
"""
"""A program: argv is the command's module, a step, the signal that comes with its batch, the command's arguments."""


class Signal(NamedTuple):
    """A signal that comes to the process of this number with the batch of a step, counted from 1."""

    process: int
    step: int
    number: signal.Signals


class Ended(NamedTuple):
    """A process after its end: exit code (minus the signal's number) and what it wrote."""

    code: int
    output: str


def run(program: str, arguments: Sequence[str], count: int = 2, *, sent: Signal | None = None) -> list[Ended]:
    """Runs `program` (train.classify, train.lm) in so many processes of one device each."""
    started = [
        subprocess.Popen(
            [*_command(program, sent, index), *arguments, *_flags(port, index, count)],
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


def _command(program: str, sent: Signal | None, index: int) -> list[str]:
    if sent is None or sent.process != index:
        return [sys.executable, "-m", program]
    return [sys.executable, "-c", SIGNALLED, program, str(sent.step), str(int(sent.number))]


def _flags(port: int, index: int, count: int) -> list[Any]:
    return ["--coordinator", f"127.0.0.1:{port}", "--process", str(index), "--processes", str(count)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
