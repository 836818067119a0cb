"""One run at a time in a run folder: a lock of the kernel, which ends with the process however that ends."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from jlora.errors import JloraError

NAME = ".lock"
"""The file in the run folder; it stays, and holds the host and the process id of who locked it last."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder, which is made where it is not there.

    Raises:
      JloraError: another process holds it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise JloraError(f"output_dir: {folder}: expected a folder that can be made, found {error}") from None
    with _acquired(folder):
        (folder / NAME).write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}), encoding="utf-8")
        yield


def require_free(folder: Path) -> None:
    """Raises JloraError where a process holds the folder."""
    if (folder / NAME).exists():
        with _acquired(folder):
            pass


@contextmanager
def _acquired(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise JloraError(
            f"output_dir: {folder}: {_holder(folder / NAME)} is training in it. Wait for it, or name another folder:"
            " output_dir=FOLDER"
        ) from None
    except OSError as error:
        raise JloraError(f"output_dir: {folder}: expected a folder that can be written, found {error}") from error
    try:
        yield
    finally:
        lock.release()


def _holder(file: Path) -> str:
    try:
        holder = json.loads(file.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError):
        return "another process"
