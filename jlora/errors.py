"""The exception for errors that a user can fix (a wrong key, file, row, shape or name), with the nearest names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from jlora.printable import printable

_LONGEST = 8000
"""Characters."""
_LONGEST_NAME = 1000


class JloraError(ValueError):
    """An error that the user can fix. The message says where, what was expected, what was found and what to do.

    The commands print it without a traceback and exit with code 2. A message may quote text from a file, of any length
    and with any characters: the middle of a very long message is cut, and the rest is escaped by `printable`.
    """

    def __init__(self, message: str) -> None:
        cut = len(message) - _LONGEST
        half = _LONGEST // 2
        short = message if cut <= 0 else f"{message[:half]} [{cut:,} characters] {message[-half:]}"
        super().__init__(printable(short))


class HubError(JloraError):
    """The Hugging Face hub, or a proxy that answers for it, did not return the requested files."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns "; nearest: a, b" with the names in `known` that are most like `name`, or "" if none is."""
    names = [name, *dict.fromkeys(known)]
    if max(map(len, names)) > _LONGEST_NAME:  # the comparison takes quadratic time
        return ""
    close = difflib.get_close_matches(name, names[1:], n=3, cutoff=0.5)
    return f"; nearest: {', '.join(close)}" if close else ""
