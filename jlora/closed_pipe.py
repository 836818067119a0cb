"""Ends a program quietly whose output nobody reads any more, as in `jlora --help | head -1`."""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO


def end_quietly(run: Callable[[], int]) -> int:
    """Runs a program and returns its exit code, also where the reader of its output has quit.

    Python would print a traceback or "Exception ignored" then, and exit with 1 or 120. Output to a full disk is
    an error on stderr, and returns 2. A SystemExit is raised again.
    """
    try:
        return run()
    except BrokenPipeError:
        if not silence_closed():
            raise
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        print(f"error: the output cannot be written: {error}", file=sys.stderr)
        return 2
    finally:
        silence_closed()


def silence_closed() -> bool:
    """Writes what is left to stdout and stderr, and redirects them to nowhere if their reader has quit.

    Returns whether the reader of one of them has.
    """
    found = False
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # None, closed, or not a file; a full disk
            try:
                stream.flush()
            except BrokenPipeError:
                found = _redirect(stream)
            else:
                found = (_has_no_reader(stream.fileno()) and _redirect(stream)) or found
    return found


def _has_no_reader(descriptor: int) -> bool:
    """Returns whether it is a pipe whose other end is closed: after one failure, Python's buffer is empty."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _redirect(stream: TextIO) -> bool:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return True
