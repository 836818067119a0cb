"""The thread of an engine, and what all engines do with adapters: other threads' calls run between its rounds."""

from __future__ import annotations

import abc
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jlora.errors import JloraError
from jlora.sharding.mesh import set_mesh
from serve.engine.adapters import AdapterSlots, Read
from serve.engine.requests import AdapterRefusedError, AdapterStatus, EngineStoppedError

logger = logging.getLogger(__name__)

_SOON = 0.002
"""Seconds until the next look at work that waits for something else, such as an adapter that is being read."""


class EngineThread(abc.ABC):
    """Runs `round` as long as there is something to do, in one thread, which alone touches bank and rows.

    A subclass has `warm_up`, `round`, `is_computing`, `is_waiting`, `cut_all` and `numbers`.
    """

    def __init__(self, name: str, adapters: AdapterSlots, read: Read, mesh: Mesh | None = None) -> None:
        """`mesh`: the one that the base is on; None is one device."""
        self.name, self._mesh = name, mesh
        self._adapters, self._read = adapters, read
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._is_over = threading.Event()
        self._failure: str | None = None
        self.is_ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @abc.abstractmethod
    def warm_up(self) -> None:
        """Compiles every program that a round may need."""

    @abc.abstractmethod
    def round(self) -> None:
        """Does the next piece of work; called in the engine's thread, as are the four methods below."""

    @abc.abstractmethod
    def is_computing(self) -> bool:
        """Returns whether the next round has something to compute."""

    @abc.abstractmethod
    def is_waiting(self) -> bool:
        """Returns whether a request waits for something that comes without another call."""

    @abc.abstractmethod
    def cut_all(self, message: str) -> None:
        """Ends everything that runs or waits."""

    @abc.abstractmethod
    def numbers(self) -> dict[str, float]:
        """Returns the engine's own part of `counts`."""

    def start(self) -> None:
        """Compiles all programs, and starts the thread."""
        with set_mesh(self._mesh):
            self.warm_up()
            self._adapters.warm_up()
        self._thread.start()

    def adapters(self) -> Sequence[AdapterStatus]:
        """Returns all adapters, in the order of their names."""
        return self.call(self._adapters.list)

    def load(self, name: str, folder: Path) -> AdapterStatus:
        """Makes an adapter known and loads it, as `Engine.load` describes."""
        try:
            stored = self._read(folder)
            self._adapters.require_place(stored)
        except (JloraError, OSError) as error:
            raise AdapterRefusedError(f"adapter {name}: {error}") from error
        return self.call(lambda: self._adapters.replace(name, folder, stored))

    def unload(self, name: str) -> None:
        """Forgets an adapter; answers that use it are finished."""
        self.call(lambda: self._adapters.forget(name))

    def counts(self) -> dict[str, float]:
        """Returns {name: number} for the metrics."""
        return self.call(lambda: {**self._adapters.numbers(), **self.numbers()})

    def stop(self, seconds: float) -> None:
        """Takes no more requests, waits at most `seconds` for answers to finish, and cuts the others."""
        self.is_ending.set()
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end and self.call(lambda: self.is_computing() or self.is_waiting()):
                time.sleep(0.02)
        except EngineStoppedError:  # it has failed, or was stopped before
            return
        self._commands.put(lambda: self.cut_all("the server has ended"))
        self._commands.put(self._is_over.set)
        self._thread.join()

    def call(self, fn: Callable[[], Any]) -> Any:
        """Runs `fn` in the engine's thread, between two rounds, and returns its result.

        Raises:
          EngineStoppedError: the engine does not run.
        """
        future: Future = Future()

        def run() -> None:
            try:
                future.set_result(fn())
            except BaseException as error:
                future.set_exception(error)

        self.post(run)
        while True:
            try:
                return future.result(timeout=1)
            except TimeoutError:
                if future.done():
                    raise
                self._require_running()

    def post(self, fn: Callable[[], None]) -> None:
        """Runs `fn` in the engine's thread, between two rounds, without waiting for it."""
        self._require_running()
        self._commands.put(fn)

    def _require_running(self) -> None:
        if not self._thread.is_alive():
            raise EngineStoppedError(self._failure or "the server is not running")

    def _run(self) -> None:
        try:
            with set_mesh(self._mesh):  # of this thread alone
                while not self._is_over.is_set():
                    self._run_commands()
                    self.round()
        except Exception as error:
            logger.exception("the engine has failed")
            self._failure = f"the engine has failed: {error}"
            self.is_ending.set()
            self.cut_all(self._failure)

    def _run_commands(self) -> None:
        """Runs what other threads have asked for; waits for it if there is nothing to compute."""
        can_wait = not self.is_computing()
        while True:
            try:
                command = self._commands.get(can_wait, _SOON if self.is_waiting() else None)
            except queue.Empty:
                return
            command()
            can_wait = False
