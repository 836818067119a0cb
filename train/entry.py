"""What every command does around its work: the log, errors on one screen, exit codes, and arguments of one kind."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

from jlora.errors import JloraError
from train.progress import configure_logging
from train.signals import Stopped

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors that say that a disk takes nothing more."""


def exit_code(work: Callable[[], None], *, verbose: bool = False, interrupted: str = "interrupted") -> int:
    """Does the work and returns the exit code.

    0 is success, 2 something that the user can mend (said on stderr), 130 an interruption (SIGINT), 143 SIGTERM.
    """
    configure_logging(verbose)
    try:
        work()
    except JloraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # who reads the output, such as `head`, has enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.errno not in _DISK:
            raise
        print(f"error: {error}: make room, or name a folder that can be written", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Stopped) as stop:
        print(interrupted, file=sys.stderr)
        return stop.code if isinstance(stop, Stopped) else 130
    return 0


def require_new(folder: Path, overwrite: bool) -> None:
    """Raises JloraError where `--out` holds something and `--overwrite` is not given."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not overwrite:
        raise JloraError(f"--out: {folder}: expected a new or empty folder; --overwrite writes into this one")


def whole_number(least: int) -> Callable[[str], int]:
    """An argument's type: a whole number of at least `least`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number >= {least}, found {text!r}")
        return int(text)

    return read


def names(text: str) -> list[str]:
    """An argument's type: names between commas."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError("expected names between commas, found none")
    return found
