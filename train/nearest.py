"""What a misspelt name was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name most like `name`, or None where none is near."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def nearest_file(path: Path) -> str:
    """The end of an error about a missing `path`: the most similar name in its folder."""
    folder = path.parent
    if not folder.is_dir():
        return f" (there is no folder {folder} either)"
    name = nearest(path.name, (entry.name for entry in folder.iterdir()))
    return f"; did you mean {folder / name}?" if name else f" in {folder.resolve()}"
