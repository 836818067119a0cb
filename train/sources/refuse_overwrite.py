"""Keeps a command from replacing the files that it reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jlora.errors import FileError, JloraError
from jlora.pretrained.locate import local_path


def require_kept(sources: Mapping[str, Any], replaced: Iterable[Path], advice: str, *, inside: bool = False) -> None:
    """Raises JloraError if a source is one of the files and folders that are to be replaced.

    The message has key, source, replaced path and `advice`. Sources that do not exist, or are on the hub, cannot be
    lost. Paths are compared with and without their links followed.

    Args:
      sources: {key or flag: a path, a hub name, a list of them, or None}.
      replaced: the files and folders that --overwrite replaces.
      advice: how to write elsewhere, the end of the error.
      inside: whether folders are deleted with their content, so that no source may be inside one either.
    """
    places = [(path, _spellings(path)) for path in replaced]
    for key, given in sources.items():
        for name in given if isinstance(given, list) else [given]:
            source = _spellings(_local(name))
            for path, spellings in places:
                if source & spellings or (inside and any(s.is_relative_to(p) for s in source for p in spellings)):
                    raise JloraError(f"{key}: {name}: would be lost, because --overwrite replaces {path}; {advice}")


def _local(name: Any) -> Path | None:
    try:
        return local_path(str(name)) if name else None
    except FileError:  # missing: the code that reads it raises the error
        return None


def _spellings(path: Path | None) -> set[Path]:
    """Returns the absolute path with and without its links followed, since deleting a link keeps its target."""
    return set() if path is None else {Path(os.path.abspath(path.expanduser())), path.expanduser().resolve()}
