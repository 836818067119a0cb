"""The exception for errors that a user can fix (a wrong key, file, row, shape or name), with the nearest names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from jlora.printable import printable

_LONGEST = 8000
"""Characters."""
_LONGEST_NAME = 1000


class JloraError(ValueError):
    """A message of at most one screen: the path, what was expected, what was found, what to do.

    The commands print it without a traceback and end with exit code 2. It may quote a file's text, of any length and
    with any characters: the middle of a very long message is left out, and the rest is escaped by `printable`.
    """

    def __init__(self, message: str) -> None:
        cut = len(message) - _LONGEST
        half = _LONGEST // 2
        short = message if cut <= 0 else f"{message[:half]} [{cut:,} characters] {message[-half:]}"
        super().__init__(printable(short))


class HubError(JloraError):
    """The Hugging Face hub, or a proxy that answers for it, did not return the requested files."""


def nearest(name: str, known: Iterable[str]) -> str:
    """ "; nearest: a, b" with the names of `known` most like `name`, or nothing where none is like it."""
    names = [name, *dict.fromkeys(known)]
    if max(map(len, names)) > _LONGEST_NAME:  # the comparison takes quadratic time
        return ""
    close = difflib.get_close_matches(name, names[1:], n=3, cutoff=0.5)
    return f"; nearest: {', '.join(close)}" if close else ""
