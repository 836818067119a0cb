"""Renames a file that was written to a temporary name, so that even a power cut leaves the old one or the new one."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def replace_file(new: Path, file: Path) -> None:
    """Renames `new`, a complete file or folder, to `file`, which it replaces; `new` and `file` are in one filesystem.

    The data is on the disk before the name changes, and the new name is on the disk when this returns.

    Raises:
      OSError: the disk is full or damaged, or `file` is a folder and not empty.
    """
    for part in (*new.rglob("*"), new) if new.is_dir() else (new,):
        _write_to_disk(part)
    new.replace(file)
    write_folder_to_disk(file.parent)


def write_folder_to_disk(folder: Path) -> None:
    """Makes the names in `folder` survive a power cut, where the filesystem can do that."""
    with suppress(OSError):  # Windows and some network filesystems cannot
        _write_to_disk(folder)


def _write_to_disk(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
