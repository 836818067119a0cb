"""Keeps the folder of a cache from growing without limit."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def drop_oldest(folder: Path, most_bytes: int, most_files: int) -> None:
    """Deletes files of `folder`, those used longest ago first, if there are more than these bytes or files.

    A quarter more than necessary is deleted, so that the next file does not exceed the limit again; the newest file
    stays whatever its size. A missing folder, or one that cannot be written, stays as it is.
    """
    if not folder.is_dir():
        return
    with suppress(OSError):  # another process deletes too
        files = [(entry.stat(), entry.path) for entry in os.scandir(folder) if entry.is_file()]
        if len(files) <= most_files and sum(found.st_size for found, _ in files) <= most_bytes:
            return
        files.sort(key=lambda file: -max(file[0].st_atime, file[0].st_mtime))
        size = files[0][0].st_size
        for number, (found, path) in enumerate(files[1:], 2):
            size += found.st_size
            if number > most_files * 3 // 4 or size > most_bytes * 3 // 4:
                os.unlink(path)
