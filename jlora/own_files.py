"""Paths that others name: whether there can be such a file, and whether it is a link out of its folder."""

from __future__ import annotations

import errno
from pathlib import Path

from jlora.errors import JloraError


def as_path(name: str) -> Path:
    """The path that `name` spells, `~` expanded, whether something is there or not.

    Raises:
      JloraError: the system has no such paths: too long, with a zero byte, of a user that does not exist.
    """
    try:
        path = Path(name).expanduser()
        path.stat()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # whatever else is wrong is said where the file is opened
            return path
        raise JloraError(f"{name}: expected the name of a file, folder or model; found one that is too long") from None
    except (ValueError, RuntimeError) as error:
        raise JloraError(f"{name}: expected the name of a file, folder or model; found {error}") from None
    return path


def require_own(file: Path, folder: Path | None = None) -> None:
    """Refuses a link that leads out of `folder`, which defaults to the one that `file` is in.

    A folder from a stranger could otherwise name any file of the user, whose content might be exported and uploaded.
    The hub's cache is made of links from a snapshot to the blobs of its repository, which are accepted.

    Raises:
      JloraError: the link, and the file that it leads to.
    """
    root, place = (folder or file.parent).resolve(), file.resolve()
    if not any(place.is_relative_to(allowed) for allowed in (root, *_blobs_of(root))):
        raise JloraError(
            f"{file}: expected a file inside {root}; found a link to {place}. Replace the link with a copy of the file"
            " if you trust it"
        )


def _blobs_of(snapshot: Path) -> tuple[Path, ...]:
    """Where the hub's cache keeps the content of a snapshot: beside its snapshots, or shared by all repositories."""
    repository = snapshot.parent.parent
    if snapshot.parent.name != "snapshots" or not repository.name.startswith("models--"):
        return ()
    return repository / "blobs", repository.parent / "blobs"
