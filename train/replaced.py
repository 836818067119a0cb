"""What a command is about to replace may not be what it reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jlora.errors import JloraError
from train.sources import local_path


def require_kept(sources: Mapping[str, Any], replaced: Iterable[Path], advice: str, *, inside: bool = False) -> None:
    """Raises JloraError where a source is one of the files and folders that are to be replaced.

    Args:
      sources: {key or flag: a path, a hub name, a list of them, or None}.
      replaced: the files and folders that --overwrite replaces.
      advice: how to write elsewhere, the end of the error.
      inside: whether a folder is deleted with all that is in it, so that no source may be inside it either.
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
    except JloraError:  # it is not there, which whoever reads it says
        return None


def _spellings(path: Path | None) -> set[Path]:
    """The absolute path as it is written, and with its links followed: of a link the link alone is deleted."""
    return set() if path is None else {Path(os.path.abspath(path.expanduser())), path.expanduser().resolve()}
