"""Allows only one run at a time in a run folder, with a kernel lock that is released however the process ends."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from jlora.errors import FileError, RunFolderError
from jlora.files.bounded_json import parse_json

logger = logging.getLogger(__name__)

NAME = ".lock"
"""The lock file in the run folder; it is not deleted, and names the host and process id of the last holder."""


@contextmanager
def hold_lock(folder: Path) -> Iterator[None]:
    """Locks the folder in a `with` block; creates it if it does not exist.

    The lock is the file .lock in it, which gets {"host", "pid", "run": a random id} and remains after the block.

    Raises:
      RunFolderError: this or another process holds the lock already, or the folder cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"output_dir: {folder}: expected a folder that can be made, found {error}") from None
    # `run` is unique for this holder.
    ours = {"host": socket.gethostname(), "pid": os.getpid(), "run": uuid.uuid4().hex}
    with _acquire(folder):
        (folder / NAME).write_text(json.dumps(ours), encoding="utf-8")
        yield


def require_free(folder: Path) -> None:
    """Raises RunFolderError if a process holds the folder's lock; a missing folder or lock file is free."""
    if (folder / NAME).exists():
        with _acquire(folder):
            pass


@contextmanager
def _acquire(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / NAME, fallback_to_soft=False)  # a soft one would outlive a killed process
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RunFolderError(
            f"output_dir: {folder}: {_name_holder(folder)} is training in it. Wait for it, or name another folder:"
            " output_dir=FOLDER"
        ) from None
    except OSError as error:
        if error.errno == errno.ENOSYS:
            logger.warning("%s: this file system has no locks: nothing keeps a second run out of the folder", folder)
            yield
            return
        raise RunFolderError(f"output_dir: {folder}: expected a folder that can be written, found {error}") from error
    try:
        yield
    finally:
        lock.release()


def holder(folder: Path) -> str:
    """Returns the text of the lock file, which identifies the holder; "" if there is no such file."""
    with suppress(OSError):
        return (folder / NAME).read_text(encoding="utf-8")
    return ""


def _name_holder(folder: Path) -> str:
    try:
        found = parse_json(holder(folder).encode(), folder / NAME)
        return f"process {found['pid']} on {found['host']}"
    except (FileError, KeyError):
        return "another process"
