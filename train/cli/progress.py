"""Shows the progress of a training run: a bar on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple, Self, SupportsFloat, TextIO

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from jlora.printable import printable, shorten_words
from train.cli.log_slow_steps import working

logger = logging.getLogger(__name__)

_OURS = ("jlora", __name__.partition(".")[0], "__main__")
"""Whose loggers are ours; the second is `train`, in a wheel `jlora_train`."""
_REDRAW_SECONDS = 0.2
_TICK_SECONDS = 1.0
_NOTEBOOK_COLUMNS = 100
_MEMORY = 0.9
"""The decay of the smoothed examples/s: each new window of steps multiplies the weight of all earlier ones by it."""


class Left(NamedTuple):
    """What remains of a run.

    Attributes:
      work: of its steps, in the unit of `Progress.update`.
      evaluations, checkpoints: how many of them are left.
    """

    work: float
    evaluations: int = 0
    checkpoints: int = 0


@dataclasses.dataclass
class _Sums:
    """Decaying sums of the count and work of past steps and of their seconds."""

    count: float = 0.0
    work: float = 0.0
    seconds: float = 0.0

    def add(self, count: float, work: float, seconds: float) -> None:
        self.count = _MEMORY * self.count + count
        self.work = _MEMORY * self.work + work
        self.seconds = _MEMORY * self.seconds + seconds


class Progress:
    """Shows loss, examples/s (or tokens/s) and time left of a training loop; a context manager.

    Rate and time left exclude compilation: waits under `compiling` are not counted, and neither are steps during which
    something was compiled, once there are others. The rate also excludes time spent under `pause`. The loss is read
    only when it is shown or during a compilation, because reading it waits for the step.

    Args:
      total: steps of the whole run.
      start: steps that are already done (a resumed run).
      log_every: steps between log lines, or between updates of the numbers in the bar.
      stream: where the bar is shown if it is a terminal; otherwise lines are logged instead.
      unit: what a step's `count` counts, examples or tokens.
      evaluation: the estimated work of an evaluation, until one has been timed.
      is_compiling: returns whether something is being compiled while the run trains.
      per_epoch: steps of an epoch.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        log_every: int = 10,
        stream: TextIO = sys.stderr,
        *,
        unit: str = "examples",
        evaluation: float = 0.0,
        is_compiling: Callable[[], bool] = lambda: False,
        per_epoch: int = 1,
    ) -> None:
        self._per_epoch = per_epoch
        self._begin = time.monotonic()
        self._total, self._start, self._step, self._log_every = total, start, start, log_every
        self._stream, self._unit, self._evaluation, self._is_compiling = stream, unit, evaluation, is_compiling
        self._bar: tqdm[None] | None = None
        self._exits = ExitStack()
        self._compiled = 0.0
        self._was_compiling = True  # the first step may compile when it is called
        self._window_begin = self._count = self._work = 0.0
        self._clean, self._disturbed = _Sums(), _Sums()
        self._pauses: dict[str, list[float]] = {}
        self._left = Left(0.0)
        self._shown = ""
        self._losses: list[SupportsFloat] = []

    def update(self, loss: SupportsFloat, count: int, learning_rate: float, work: float, left: Left) -> None:
        """Counts one step.

        Args:
          loss: its mean loss, possibly a device array.
          count: how many of the unit (examples or tokens) it processed.
          work: its amount of work, in any unit that is proportional to time, such as tokens with padding.
          left: what remains to do after it.
        """
        self._step += 1
        first, last = self._step == self._start + 1, self._step == self._total
        compiling = self._is_compiling()
        disturbed, self._was_compiling = compiling or self._was_compiling, compiling
        self._count += count
        self._work += work
        self._left = left
        self._losses.append(loss)
        if self._bar is not None:
            self._bar.update()
        shown = first or last or self._step % self._log_every == 0
        if shown or disturbed:
            float(loss)  # waits for the step
            self._close_window(disturbed, first)
            if shown:
                self._show(learning_rate)

    @property
    def per_second(self) -> float:
        """The smoothed rate of training; 0.0 before the second step has been shown."""
        return self._sums.count / self._sums.seconds if self._sums.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Estimated from how long earlier steps took for their work, and the pauses; None before the second step."""
        sums = self._sums
        if not sums.work:
            return None if self._left.work else 0.0
        for_work = sums.seconds / sums.work
        evaluation = self._mean_pause("evaluation", self._evaluation * for_work)
        pauses = self._left.evaluations * evaluation + self._left.checkpoints * self._mean_pause("checkpoint", 0.0)
        return for_work * self._left.work + pauses

    @contextmanager
    def pause(self, what: str) -> Iterator[None]:
        """Excludes an evaluation or a checkpoint (`what`) from the rate, and expects later ones to take as long."""
        begin = self._now()
        yield
        seconds = self._now() - begin
        self._pauses.setdefault(what, []).append(seconds)
        self._window_begin += seconds

    @contextmanager
    def compiling(self, what: str) -> Iterator[None]:
        """Shows that the run waits for `what` to be compiled, and excludes that time."""
        if self._bar is None:
            logger.info("compiling: %s", what)
        self._tell(f"compiling: {what}")
        begin = time.monotonic()
        yield
        self._compiled += time.monotonic() - begin
        self._tell(self._shown)

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """Shows the progress of some work: yields a function to call before each of its `total` parts."""
        done = 0
        last = -math.inf

        def tick() -> None:
            nonlocal done, last
            if self._bar is not None and time.monotonic() - last >= _REDRAW_SECONDS:
                last = time.monotonic()
                self._tell(f"{what} {done}/{total}")
            done += 1

        batches = f"{total} batch{'es' * (total != 1)}"
        with working(f"{what}: {batches}") if self._bar is None else nullcontext():
            yield tick
        self._tell(self._shown)

    def __enter__(self) -> Self:
        in_notebook = _is_notebook(self._stream)
        if in_notebook or (self._stream.isatty() and _has_columns(self._stream)):
            form = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps  {elapsed}  {desc}"
            width: dict[str, Any] = {"ncols": _NOTEBOOK_COLUMNS} if in_notebook else {"dynamic_ncols": True}
            bar = tqdm(total=self._total, initial=self._start, file=self._stream, bar_format=form, **width)
            self._bar = self._exits.enter_context(bar)
            self._exits.enter_context(logging_redirect_tqdm())
            self._exits.enter_context(_ticking(bar))
        return self

    def __exit__(self, *error: object) -> None:
        self._exits.close()

    @property
    def _sums(self) -> _Sums:
        return self._clean if self._clean.seconds else self._disturbed

    def _now(self) -> float:
        """Returns the seconds of a clock that stops during waits for compilation."""
        return time.monotonic() - self._compiled

    def _mean_pause(self, what: str, unknown: float) -> float:
        """Returns the mean seconds of this kind of pause, or `unknown` before the first one."""
        timed = self._pauses.get(what)
        return sum(timed) / len(timed) if timed else unknown

    def _close_window(self, disturbed: bool, first: bool) -> None:
        now = self._now()
        if not first:
            sums = self._disturbed if disturbed else self._clean
            sums.add(self._count, self._work, now - self._window_begin)
        self._window_begin, self._count, self._work = now, 0.0, 0.0

    def _tell(self, text: str) -> None:
        """Writes what the run is doing into the bar, if there is one."""
        if self._bar is not None:
            self._bar.set_description_str(text)

    def _show(self, learning_rate: float) -> None:
        loss = sum(map(float, self._losses)) / len(self._losses)
        self._losses.clear()
        left = [] if self.seconds_left is None else [f"{clock(self.seconds_left)} left"]
        parts = [f"loss {loss:.4f}", f"epoch {self._step / self._per_epoch:.2f}", f"lr {learning_rate:.2e}"]
        if self._sums.seconds:
            parts.append(f"{self.per_second:,.0f} {self._unit}/s")
        if self._bar is not None:
            self._shown = "  ".join([*left, *parts])  # a narrow terminal cuts the end
            self._tell(self._shown)
        else:
            gone = f"{clock(time.monotonic() - self._begin)} gone"
            logger.info("step %d/%d  %s", self._step, self._total, "  ".join([*parts, gone, *left]))


def _is_notebook(stream: TextIO) -> bool:
    """Returns whether the stream is the output of a notebook's cell, which shows a bar as a terminal does."""
    return type(stream).__module__.startswith("ipykernel")


def _has_columns(terminal: TextIO) -> bool:
    """Returns whether there is room for a bar; some terminals of containers report 0 columns."""
    try:
        return os.get_terminal_size(terminal.fileno()).columns > 0
    except OSError:  # an object that behaves like a terminal, but has no file descriptor
        return True


@contextmanager
def _ticking(bar: tqdm[None]) -> Iterator[None]:
    """Redraws the bar each second, so that its clock keeps running while a program is compiled."""
    is_done = threading.Event()

    def redraw() -> None:
        while not is_done.wait(_TICK_SECONDS):
            bar.refresh()

    thread = threading.Thread(target=redraw, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()


def clock(seconds: float) -> str:
    """Formats seconds, rounded, as `m:ss` or `h:mm:ss`: 65 -> "1:05", 3661 -> "1:01:01"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _PrintableRecord(logging.LogRecord):
    """A record whose message is escaped by `printable` and without very long words, for all packages and handlers."""

    def getMessage(self) -> str:
        return printable(shorten_words(super().getMessage()))


def configure_logging(verbose: bool = False) -> None:
    """Sends log messages to stderr, with the time of day: all of our own, of other packages from WARNING on.

    The root logger gets this handler in place of others. Ours are the loggers `jlora`, this package's and `__main__`;
    they have the level INFO, or DEBUG with `verbose`. Call it before `transformers` is imported: it also silences that
    package's advice that PyTorch is missing, which is expected here.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.setLogRecordFactory(_PrintableRecord)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    # A package with its own handler, such as huggingface_hub, has already printed the message that it passes on.
    handler.addFilter(lambda record: not logging.getLogger(record.name.partition(".")[0]).handlers)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("absl", "asyncio"):  # orbax, and the event loops that it reads and writes in, also log what it raises
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)
