"""What a file that is not there may have been meant to be."""

from __future__ import annotations

from pathlib import Path

from jlora.errors import nearest


def nearest_file(path: Path) -> str:
    """The end of an error about a missing `path`: the names in its folder that are most like it."""
    folder = path.parent
    if not folder.is_dir():
        return f" (there is no folder {folder} either)"
    return f"{nearest(path.name, (entry.name for entry in folder.iterdir()))} in {folder.resolve()}"
