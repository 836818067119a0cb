"""SIGTERM, SIGINT and SIGHUP while a run trains: it saves and leaves with 143, 130 or 129; a second signal ends it."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

logger = logging.getLogger(__name__)

_HEARD: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_SECOND_AFTER = 1.0
"""Seconds from a first signal to one that counts as a second: `timeout` and shells send theirs twice at once."""


class Stopped(Exception):
    """A signal ended the run, which has saved what it did; `code` is the exit code, 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


class Cut(Exception):
    """A signal ends what can be done again."""


class Stop:
    """Whether a signal has come."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._asked = 0

    def requested(self) -> bool:
        """Whether to save and leave. Several processes must all ask, at the same places of their work, and agree."""
        import jax  # of which a command knows nothing yet that only says what it can do
        from jax.experimental import multihost_utils

        self._asked += 1
        undecided = jax.process_count() > 1 and self.number is None
        if undecided and multihost_utils.reached_preemption_sync_point(self._asked):
            self.number = signal.SIGTERM
        return self.number is not None

    def check(self) -> None:
        """Raises Cut where `requested`."""
        if self.requested():
            raise Cut

    def note(self, number: int, frame: FrameType | None) -> None:
        """Python's handler, called in the main thread between two of its instructions."""
        self.number = number


@contextmanager
def listening() -> Iterator[Stop]:
    """Takes the signals over; of several processes JAX has taken SIGTERM when they joined, and tells all of them.

    After the block a signal ends the process at once.

    Raises:
      Stopped: one came, when the block has ended.
    """
    import jax

    stop = Stop()
    if jax.process_count() > 1:
        yield stop
        stop.requested()  # of one that came while the last checkpoint was written
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nobody asks any more
    else:
        with _handled(stop):
            yield stop
    if stop.number is not None:
        raise Stopped(stop.number)


@contextmanager
def _handled(stop: Stop) -> Iterator[None]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before_fd = signal.set_wakeup_fd(writer)
    heard = [
        number for number in _HEARD if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    ]  # nohup
    before = {number: signal.signal(number, stop.note) for number in heard}
    watch = threading.Thread(target=_watch, args=[reader, heard], daemon=True)
    watch.start()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before_fd)
        os.close(writer)
        watch.join()
        os.close(reader)


def _watch(reader: int, heard: Sequence[int]) -> None:
    """Reads the numbers of signals as they come, also while the main thread is deep in a compilation."""
    first = math.inf
    while number := os.read(reader, 1):
        if number[0] not in heard:
            continue
        if time.monotonic() - first > _SECOND_AFTER:
            os._exit(128 + number[0])
        if first < math.inf:
            continue
        first = time.monotonic()
        name = signal.Signals(number[0]).name
        logger.warning("%s: this step ends, a checkpoint is written; a second signal ends the run at once", name)
