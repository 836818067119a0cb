"""Suggests the file that a missing path may have meant."""

from __future__ import annotations

from pathlib import Path

from jlora.errors import nearest


def nearest_file(path: Path) -> str:
    """Returns the end of an error message about a missing `path`: the most similar names in its folder.

    For the folder /data: "; nearest: a.csv, b.csv in /data"; " in /data" if no name is similar; " (there is no folder
    /data either)".
    """
    folder = path.parent
    if not folder.is_dir():
        return f" (there is no folder {folder} either)"
    return f"{nearest(path.name, (entry.name for entry in folder.iterdir()))} in {folder.resolve()}"
