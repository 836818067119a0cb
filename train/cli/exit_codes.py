"""Wraps the work of every command: sets up the log, prints errors on one screen, returns exit codes."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Callable
from pathlib import Path

from jlora.closed_pipe import silence_closed
from jlora.errors import JloraError
from jlora.files.atomic_folder import DISK_FULL
from jlora.files.run_folder import is_run
from jlora.printable import printable
from train.cli.progress import configure_logging
from train.cli.signals import Stopped


def exit_code(work: Callable[[], None], *, verbose: bool = False, interrupted: str = "interrupted") -> int:
    """Does the work and returns the exit code.

    0 is success, and so is a closed pipe. 2 is an error that the user can fix, printed on stderr as `error: ...`: a
    JloraError, MemoryError, or an OSError that names a file or comes from a full disk or missing rights. 130 is an
    interruption (KeyboardInterrupt); the code of a `Stopped` is its own. Other exceptions, SystemExit too, are raised.

    Args:
      verbose: whether our own DEBUG messages are logged; `configure_logging(verbose)` is called first.
      interrupted: what is printed on stderr after an interruption or a `Stopped`.
    """
    configure_logging(verbose)
    replace_unencodable()
    try:
        work()
    except JloraError as error:
        return _said(f"error: {error}", 2)
    except MemoryError as error:
        return _said(f"error: out of memory: {error}. Ask for less at once, or use a larger machine", 2)
    except BrokenPipeError:
        if not silence_closed():
            raise
    except OSError as error:
        if error.errno in DISK_FULL:
            return _said(f"error: {error}: free disk space, or name a folder that can be written", 2)
        if error.errno in (errno.EACCES, errno.EPERM):
            return _said(f"error: {error}: allow it, or name another place", 2)
        if error.filename is not None:  # a folder where a file was expected, a name that is too long, ...
            return _said(f"error: {error}", 2)
        raise
    except (KeyboardInterrupt, Stopped) as stop:
        return _said(interrupted, stop.code if isinstance(stop, Stopped) else 130)
    return 0


def replace_unencodable() -> None:
    """Makes stdout print `?` for a character that its encoding lacks, instead of raising an error."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def show(text: str) -> None:
    """Prints the text, escaped by `printable`, and ignores a closed pipe."""
    try:
        print(printable(text), flush=True)
    except BrokenPipeError:
        silence_closed()


def _said(text: str, code: int) -> int:
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except BrokenPipeError:  # `2>&1 | tee` ends with the Ctrl-C that ended us
        silence_closed()
    return code


def require_new_file(flag: str, file: Path, overwrite: bool) -> None:
    """Raises JloraError if the file of a flag cannot be written, or exists and `--overwrite` is not given."""
    if file.is_dir():
        raise JloraError(f"{flag}: {file}: expected the name of a file, found a folder; name a file in it")
    _require_no_file_above(flag, file)
    if file.exists() and not overwrite:
        raise JloraError(f"{flag}: {file}: exists; name another file, or give --overwrite")


def _require_no_file_above(flag: str, path: Path) -> None:
    if above := next((folder for folder in path.parents if folder.is_file()), None):
        raise JloraError(f"{flag}: {path}: expected a folder {above} or none, found a file; name another place")


def require_new(folder: Path, overwrite: bool) -> None:
    """Raises JloraError if `folder` is a file, a run's folder, or not empty and `overwrite` is false.

    The message names `--out`, the folder and what to do.
    """
    if folder.is_file():
        raise JloraError(f"--out: {folder}: expected the name of a folder, found a file; name another place")
    _require_no_file_above("--out", folder)
    if is_run(folder):
        raise JloraError(f"--out: {folder}: is the folder of a run, which --overwrite would mix up; name another place")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise JloraError(f"--out: {folder}: expected a new or empty folder; --overwrite writes into this one")
