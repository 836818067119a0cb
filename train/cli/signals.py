"""Ends a run early, with a checkpoint, on a signal or when its time is up.

SIGTERM, SIGINT and SIGHUP end it with exit codes 143, 130 and 129; a second signal ends the process at once. SIGUSR1
and SIGXCPU, which schedulers send shortly before the time limit, and `train.max_hours` end it with 75.
"""

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

TIME_IS_UP = 75
"""The exit code of a run that was saved and should be resumed later: EX_TEMPFAIL of sysexits.h."""

_OUT_OF_TIME: tuple[int, ...] = (signal.SIGUSR1, signal.SIGXCPU)
_HEARD: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, *_OUT_OF_TIME)

_SECOND_AFTER = 1.0
"""Seconds after which another signal counts as a second one: `timeout` and shells send a signal twice at once."""


class Stopped(Exception):
    """The run was saved and ended by a signal or the end of its time.

    `code` is the exit code: TIME_IS_UP, or 128 and the signal's number.
    """

    def __init__(self, number: int | None) -> None:
        """Takes the signal's number, or None if the time is up."""
        super().__init__("time is up" if number is None else signal.Signals(number).name)
        self.code = TIME_IS_UP if number is None else _code(number)


class Cut(Exception):
    """Raised on a signal to abandon work that a resumed run can repeat."""


class Stop:
    """Records whether a signal has come or the time is up (`deadline`, by time.monotonic()).

    Attributes:
      number: the signal; None if none has come.
      is_late: whether the time is up.
    """

    def __init__(self, deadline: float = math.inf) -> None:
        self.number: int | None = None
        self.is_late = False
        self._deadline = deadline
        self._asked = 0

    def is_requested(self) -> bool:
        """Returns whether to save and leave. With several processes all must call it at the same steps; all agree."""
        import jax  # not at the top of the file: --help must not wait for JAX
        from jax.experimental import multihost_utils

        self._asked += 1
        alone = jax.process_count() == 1
        if not self.is_late and time.monotonic() >= self._deadline:
            self.is_late = True
            logger.warning("train.max_hours is over: finishing this step and writing a checkpoint")
            if not alone:
                os.kill(os.getpid(), signal.SIGTERM)  # JAX tells the other processes
        if not alone and self.number is None and multihost_utils.reached_preemption_sync_point(self._asked):
            self.number = signal.SIGTERM
        return self.number is not None or (self.is_late and alone)

    def has_come(self) -> bool:
        """Returns whether this process knows of a signal or that the time is up; asks no other process."""
        return self.number is not None or self.is_late

    def check(self) -> None:
        """Raises Cut if `is_requested`."""
        if self.is_requested():
            raise Cut

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal; Python calls it in the main thread, between two bytecode instructions."""
        self.number = number

    def note_for_all(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal that tells one of several processes that the time is up."""
        self.is_late = True
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def listening(deadline: float = math.inf) -> Iterator[Stop]:
    """Handles the signals inside the block; with several processes JAX handles SIGTERM and tells all of them.

    A context manager that yields the Stop, in which SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGXCPU are recorded instead
    of ending the process; one that comes a second or more after the first ends it at once. After the block the earlier
    handlers are back.

    Args:
      deadline: when the run must save and end, by time.monotonic(); noticed by the next `Stop.is_requested`.

    Raises:
      Stopped: at the end of the block, if a signal came or the time is up.
    """
    import jax

    stop = Stop(deadline)
    if jax.process_count() > 1:
        before = {number: signal.signal(number, stop.note_for_all) for number in _OUT_OF_TIME}
        yield stop
        stop.is_requested()  # a signal may have come while the last checkpoint was written
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # `is_requested` is not called any more
        for number, handler in before.items():
            signal.signal(number, handler)
    else:
        with _handle_signals(stop):
            yield stop
    if stop.has_come():
        raise Stopped(_why(stop))


def _why(stop: Stop) -> int | None:
    """Returns the signal that ended the run, None if its time was up; all processes call it and agree."""
    import jax

    from train.devices.processes import all_agree

    if jax.process_count() == 1:
        return stop.number
    return stop.number if all_agree(not stop.is_late) else None


def leave_when_time_is_up() -> None:
    """Makes SIGUSR1 and SIGXCPU end the process with exit code 75; inside `listening` they save the run first."""
    for number in _OUT_OF_TIME:
        signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    logger.warning("%s: there is nothing to save now; continue with --resume", signal.Signals(number).name)
    os._exit(TIME_IS_UP)  # the running code might catch an exception


def _code(number: int) -> int:
    return TIME_IS_UP if number in _OUT_OF_TIME else 128 + number


@contextmanager
def _handle_signals(stop: Stop) -> Iterator[None]:
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
    """Reads the numbers of signals as they come, even while the main thread is busy in a compilation."""
    first = math.inf
    while number := os.read(reader, 1):
        if number[0] not in heard:
            continue
        if time.monotonic() - first > _SECOND_AFTER:
            os._exit(_code(number[0]))
        if first < math.inf:
            continue
        first = time.monotonic()
        name = signal.Signals(number[0]).name
        logger.warning("%s: finishing this step and writing a checkpoint; a second signal ends the run at once", name)
