"""What a run says while it trains: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Self, SupportsFloat, TextIO

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

logger = logging.getLogger(__name__)

_OURS = ("jlora", "train", "__main__")
_MEMORY = 0.9
"""How much of the past a new window of steps leaves in examples/s."""


class Progress:
    """Loss, examples/s (or tokens/s) and time left of a training loop; a context manager.

    total: steps of the whole run. start: steps already done (a resumed run). log_every: steps from one plain
    line, or one renewed number in the bar, to the next. stream: where the bar goes if it is a terminal; if it
    is not, lines go to the log instead. unit: what a step's `count` counts, examples or tokens.

    The first step counts for neither rate nor time left (it holds the compilation), and examples/s leaves out
    what happens under `paused`. The loss is read only when it is shown: until then a step may still run.
    """

    def __init__(
        self, total: int, start: int = 0, log_every: int = 10, stream: TextIO = sys.stderr, *, unit: str = "examples"
    ) -> None:
        self._total, self._start, self._step, self._log_every = total, start, start, log_every
        self._stream, self._unit = stream, unit
        self._bar: tqdm[None] | None = None
        self._exits = ExitStack()
        self._first_step_end = 0.0
        self._window_begin = 0.0
        self._window_count = 0
        self._count = self._seconds = 0.0

    def update(self, loss: SupportsFloat, count: int, learning_rate: float) -> None:
        """Count one step that got through `count` of the unit; loss is its mean loss, a device array included."""
        self._step += 1
        first, last = self._step == self._start + 1, self._step == self._total
        if not first:
            self._window_count += count
        if self._bar is not None:
            self._bar.update()
        if first or last or self._step % self._log_every == 0:
            value = float(loss)  # waits for the step
            self._close_window(first)
            self._show(value, learning_rate)

    @property
    def per_second(self) -> float:
        """The smoothed rate of training; 0.0 before the second step has been shown."""
        return self._count / self._seconds if self._seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Estimate from the mean time of the steps so far, pauses included; None before the second step."""
        done = self._step - self._start - 1
        if done < 1:
            return None
        return (time.monotonic() - self._first_step_end) / done * (self._total - self._step)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep an evaluation or a checkpoint out of examples/s."""
        begin = time.monotonic()
        yield
        self._window_begin += time.monotonic() - begin

    def __enter__(self) -> Self:
        if self._stream.isatty():
            form = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps{postfix}"
            bar = tqdm(total=self._total, initial=self._start, file=self._stream, bar_format=form, dynamic_ncols=True)
            self._bar = self._exits.enter_context(bar)
            self._exits.enter_context(logging_redirect_tqdm())
        return self

    def __exit__(self, *error: object) -> None:
        self._exits.close()

    def _close_window(self, first: bool) -> None:
        now = time.monotonic()
        if first:
            self._first_step_end = now
        else:
            self._count = _MEMORY * self._count + self._window_count
            self._seconds = _MEMORY * self._seconds + (now - self._window_begin)
        self._window_begin, self._window_count = now, 0

    def _show(self, loss: float, learning_rate: float) -> None:
        parts = [f"loss {loss:.4f}"]
        if self._bar is None:
            parts.append(f"lr {learning_rate:.2e}")
        if self._seconds:
            parts.append(f"{self.per_second:,.0f} {self._unit}/s")
        left = self.seconds_left
        if left is not None:
            parts.append(f"{clock(left)} left")
        if self._bar is not None:
            self._bar.set_postfix_str("  ".join(parts))
        else:
            logger.info("step %d/%d  %s", self._step, self._total, "  ".join(parts))


def clock(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def configure_logging(verbose: bool = False) -> None:
    """Send the messages of jlora and train to stderr, bare; those of other packages only from WARNING on.

    `verbose` adds DEBUG messages of our own. Call it before `transformers` is imported: it also silences its
    advice that PyTorch is missing, which is no news here.
    """
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs with a traceback what it raises too
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)
