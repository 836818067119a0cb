"""The trainers in processes of their own: forked from a server that has imported them, alone or several that join."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["train.task.runner", "train.classify.task", "train.lm.task"])

LONGEST = 240
"""Seconds after which a run is taken for stuck."""


class Signal(NamedTuple):
    """A signal that comes to the process of this number with the batch of a step, counted from 1."""

    process: int
    step: int
    number: signal.Signals


class Ended(NamedTuple):
    """A process after its end: exit code (minus the signal's number) and what it wrote."""

    code: int
    output: str


def start(trainer: str, arguments: Sequence[str], log: Path, prepare: Callable[[], None] | None = None) -> Any:
    """A process that runs `trainer`, classify or lm; its output is added to `log`. `prepare` is called in it first."""
    from tests.support.training import (
        tiny,  # which makes a folder: not in the processes started here, which import this file
    )

    target = (trainer, [str(argument) for argument in arguments], str(log), prepare, tiny.environment())
    process = _SERVER.Process(target=_run, args=target)
    process.start()
    return process


def finish(process: Any) -> int:
    """The exit code of a process, negative where a signal ended it."""
    process.join(LONGEST)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"the run did not end in {LONGEST} seconds")
    return process.exitcode


def run_together(
    trainer: str,
    arguments: Sequence[str],
    count: int = 2,
    *,
    sent: Signal | None = None,
    places: Sequence[Path] | None = None,
) -> list[Ended]:
    """Runs `trainer` in so many processes of one device each, as a launcher would start them; in these `places`."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder, str(index)) for index in range(count)]
        started = [
            start(trainer, [*arguments, *_flags(port, index, count)], log, _prepared(sent, places, index))
            for index, log in enumerate(logs)
        ]
        try:
            codes = [finish(process) for process in started]
            return [Ended(code, log.read_text(encoding="utf-8")) for code, log in zip(codes, logs, strict=True)]
        finally:
            for process in started:
                process.kill()


def signal_at(step: int, number: signal.Signals) -> None:
    """Has the signal come to this process with the batch of a step, counted from where the run goes on."""
    from train.loop import loop

    planned_steps = loop.plan_steps

    def signalling(*arguments: Any) -> Iterator[Any]:
        for count, planned in enumerate(planned_steps(*arguments), 1):
            if count == step:
                os.kill(os.getpid(), number)
            yield planned

    loop.plan_steps = signalling


def _prepared(sent: Signal | None, places: Sequence[Path] | None, index: int) -> Callable[[], None] | None:
    if places is not None:
        return partial(os.chdir, places[index])
    return partial(signal_at, sent.step, sent.number) if sent is not None and sent.process == index else None


def _run(
    trainer: str, arguments: list[str], log: str, prepare: Callable[[], None] | None, environment: dict[str, str]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(descriptor, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    from train.classify import __main__ as classify
    from train.lm import __main__ as lm

    if prepare is not None:
        prepare()
    sys.exit({"classify": classify, "lm": lm}[trainer].main(arguments))


def _flags(port: int, index: int, count: int) -> list[str]:
    return ["--coordinator", f"127.0.0.1:{port}", "--process", str(index), "--processes", str(count)]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
