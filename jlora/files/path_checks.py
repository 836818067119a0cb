"""Checks of untrusted paths: whether the system can have such a path, and whether it is a link out of its folder."""

from __future__ import annotations

import errno
from pathlib import Path

from jlora.errors import FileError


def as_path(name: str) -> Path:
    """Returns `name` as a path with `~` expanded, whether it exists or not.

    Raises:
      FileError: the system cannot have this path: too long, with a zero byte, or `~user` of an unknown user.
    """
    try:
        path = Path(name).expanduser()
        path.stat()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # other errors are raised when the file is opened
            return path
        raise FileError(f"{name}: expected the name of a file, folder or model; found one that is too long") from None
    except (ValueError, RuntimeError) as error:
        raise FileError(f"{name}: expected the name of a file, folder or model; found {error}") from None
    return path


def looks_like_path(name: str) -> bool:
    """Returns whether a missing `name` must have been meant as a path, and not as the hub's NAME or OWNER/NAME.

    A run's folder is one (`runs/NAME`, where commands write by default), although the hub could have such an owner.
    """
    text = str(name)
    return text.startswith((".", "/", "~", "runs/")) or text.count("/") > 1


def require_own(file: Path, folder: Path | None = None) -> None:
    """Refuses a link that leads out of `folder`, which defaults to the one that `file` is in.

    An untrusted folder could otherwise link to any file of the user, whose content might be exported and uploaded. A
    snapshot in the hub's cache, HUB/models--NAME/snapshots/COMMIT, may link into HUB/models--NAME/blobs and HUB/blobs.

    Raises:
      FileError: `file`, with all links followed, is not inside `folder`; the message names both ends of the link.
    """
    root, place = (folder or file.parent).resolve(), file.resolve()
    if not any(place.is_relative_to(allowed) for allowed in (root, *_blobs_of(root))):
        raise FileError(
            f"{file}: expected a file inside {root}; found a link to {place}. Replace the link with a copy of the file"
            " if you trust it"
        )


def _blobs_of(snapshot: Path) -> tuple[Path, ...]:
    """Returns where the hub's cache keeps a snapshot's content: in its repository, or shared by all repositories."""
    repository = snapshot.parent.parent
    if snapshot.parent.name != "snapshots" or not repository.name.startswith("models--"):
        return ()
    return repository / "blobs", repository.parent / "blobs"
