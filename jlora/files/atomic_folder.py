"""Writes several files into a folder together, once all of them are complete."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from jlora.files.replace_file import replace_file, write_folder_to_disk

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Error numbers of a disk that cannot be written: full, over quota or read-only."""

_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how Rust libraries report it, in their own exception types


@contextmanager
def whole_folder(
    folder: Path, *, last: Sequence[str] = (), stale: Sequence[str] = (), name: str = ".partial"
) -> Iterator[Path]:
    """Yields a temporary folder inside `folder`; its files are moved to `folder` if the block succeeds.

    `with whole_folder(folder) as partial: (partial / "a.json").write_text("{}")` writes `folder / "a.json"`. Files of
    the same names are replaced, other files stay. If the block raises, `folder` is not changed (and removed if it is
    new). If the process is killed during the moves, the files of `last` are missing, which readers notice.

    Args:
      folder: created if it does not exist.
      last: names of files that are moved after all others: those that readers look for first.
      stale: glob patterns of files in `folder` that are deleted before the new ones are moved there.
      name: of the temporary folder. One that a killed process left is replaced.

    Raises:
      OSError: the disk is full or read-only: it names `folder`, and replaces the OSError, or the error of a Rust
        library ("... (os error 28)"), that the block raised. Other exceptions of the block are raised as they are.
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
            replace_file(file, folder / file.name)
        if is_new:
            write_folder_to_disk(folder.parent)
    except Exception as error:
        number = _number(error)
        if number is None or number not in DISK_FULL:
            raise
        raise OSError(number, os.strerror(number), str(folder)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if is_new:
            with suppress(OSError):
                folder.rmdir()  # only removes an empty folder


def _number(error: Exception) -> int | None:
    """Returns the operating system's number of an error, or None if it has none."""
    if isinstance(error, OSError):
        return error.errno
    found = _OS_ERROR.search(str(error))
    return None if found is None else int(found[1])
