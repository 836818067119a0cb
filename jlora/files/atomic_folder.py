"""Files that come into a folder together, when each of them is whole."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors that say that a disk takes nothing more."""

_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # as libraries in Rust have it, in errors of their own kinds


@contextmanager
def whole_folder(
    folder: Path, *, last: Sequence[str] = (), stale: Sequence[str] = (), name: str = ".partial"
) -> Iterator[Path]:
    """A folder inside of `folder` to write into, whose files are moved to `folder` where the block ends well.

    Where it does not, `folder` is as it was. A process that is killed during the moves leaves it without the files of
    `last`.

    Args:
      folder: is made where it is not there.
      last: names of files that are moved after all others: those by which readers find them.
      stale: patterns of files in `folder` that are deleted before the others come.
      name: of the folder to write into. One that a killed process left is replaced.

    Raises:
      OSError: the disk is full or read-only, whatever kind of error the writer made of that; it names `folder`.
    """
    partial, is_new = folder / name, not folder.exists()
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for file in (file for pattern in stale for file in folder.glob(pattern)):
            file.unlink()
        for file in sorted(partial.iterdir(), key=lambda file: file.name in last):
            if file.is_dir():
                shutil.rmtree(folder / file.name, ignore_errors=True)
            file.replace(folder / file.name)
    except Exception as error:
        number = _number(error)
        if number is None or number not in DISK_FULL:
            raise
        raise OSError(number, os.strerror(number), str(folder)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if is_new:
            with suppress(OSError):
                folder.rmdir()  # while it is empty


def _number(error: Exception) -> int | None:
    """The operating system's number of an error."""
    if isinstance(error, OSError):
        return error.errno
    found = _OS_ERROR.search(str(error))
    return None if found is None else int(found[1])
