"""Compiles a run's programs ahead of their use, in one thread, in the order in which the run needs them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, Self

import jax

Say = Callable[[str], AbstractContextManager]
"""say(what) returns a context manager that is entered while the run waits for `what` to be compiled."""


class _Queued(NamedTuple):
    """A program to compile: its name for the user, the function that compiles it, and the future with the result."""

    name: str
    make: Callable[[], Any]
    done: futures.Future


class Compiler:
    """A thread that compiles programs in the order in which they are added; a context manager.

    XLA compiles without holding Python's lock, so training continues meanwhile. At the end of the block, programs that
    were not started are dropped, and it waits for the one that was: a process cannot exit cleanly while it compiles.

    Attributes:
      waited: seconds that the run has spent in `wait` so far.
    """

    def __init__(self) -> None:
        self._queue = deque[_Queued]()
        self._wakes = threading.Condition()
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._begun: _Queued | None = None
        self._say: Say = lambda what: nullcontext()
        self.waited = 0.0

    def add(self, name: str, make: Callable[[], Any]) -> _Queued:
        """Queues `make`, a function without arguments, and starts the thread if it is not running yet.

        Returns what `wait` takes. `name` is what `wait` tells the user. After the end of the block nothing is compiled.
        """
        queued = _Queued(name, make, futures.Future())
        with self._wakes:
            if self._is_closed:
                queued.done.cancel()
                return queued
            self._queue.append(queued)
            self._wakes.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="compiler", daemon=True)
            self._thread.start()
        return queued

    def wait(self, queued: _Queued) -> None:
        """Moves `queued` to the front and waits until it is compiled or dropped; raises the compilation's error."""
        if not queued.done.done():
            with self._wakes:
                if queued in self._queue:
                    self._queue.remove(queued)
                    self._queue.appendleft(queued)
            begin = time.monotonic()
            with self._say(queued.name):
                futures.wait([queued.done])
            self.waited += time.monotonic() - begin
        if not queued.done.cancelled():
            queued.done.result()

    @property
    def is_busy(self) -> bool:
        """Whether a program is being compiled or is queued."""
        with self._wakes:
            return bool(self._queue) or self._begun is not None

    @contextmanager
    def saying(self, say: Say) -> Iterator[None]:
        """Makes `wait` announce each wait with `say` inside the block."""
        before, self._say = self._say, say
        try:
            yield
        finally:
            self._say = before

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with self._wakes:
            self._is_closed = True
            for queued in self._queue:
                queued.done.cancel()
            self._queue.clear()
            self._wakes.notify()
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while (queued := self._next()) is not None:
            try:
                queued.done.set_result(queued.make())
            except BaseException as error:  # `wait` raises it
                queued.done.set_exception(error)

    def _next(self) -> _Queued | None:
        with self._wakes:
            self._begun = None
            self._wakes.wait_for(lambda: self._queue or self._is_closed)
            self._begun = self._queue.popleft() if self._queue else None
            return self._begun


class CompiledAhead:
    """A jitted function that waits if its program for a batch's shape is being compiled; called like the original.

    JAX keeps a program that was compiled ahead and uses it for later calls with such arguments, so these do not compile
    (tests/train/devices/test_compile_ahead.py checks it). A shape that was not prepared is compiled when it is called.

    Attributes:
      function: a jitted function, or one of `train.devices.placement` for a mesh.
      batch: the index of the batch among its arguments.
    """

    def __init__(self, function: Any, compiler: Compiler, *, batch: int) -> None:
        self.function, self.batch = function, batch
        self._compiler = compiler
        self._programs: dict[Any, _Queued] = {}

    def prepare(self, name: str, *arguments: Any) -> None:
        """Queues the program for arguments like these; only their shapes, dtypes and shardings count."""
        shapes = _shapes(arguments[self.batch])
        if shapes in self._programs:
            return
        abstract = jax.tree.map(_abstract, arguments)
        self._programs[shapes] = self._compiler.add(name, lambda: self.function.lower(*abstract).compile())

    def __call__(self, *arguments: Any) -> Any:
        program = self._programs.get(_shapes(arguments[self.batch]))
        if program is not None:
            self._compiler.wait(program)
        return self.function(*arguments)


def _shapes(batch: Any) -> Sequence[tuple[int, ...]]:
    return tuple(leaf.shape for leaf in jax.tree.leaves(batch))


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Returns the properties that select a program. Uncommitted arrays, such as numpy's, have no sharding."""
    sharding = leaf.sharding if getattr(leaf, "committed", False) else None
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding, weak_type=getattr(leaf, "weak_type", False))
