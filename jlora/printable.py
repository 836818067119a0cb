"""Text as it may be shown: what a file says must not move the cursor, hide a line or reverse the reading order."""

from __future__ import annotations

import re

_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but newline and tab, line separators, marks of direction, and halves of characters."""


def printable(text: str) -> str:
    """The text with each character that a terminal obeys, or cannot show, as its code: ESC as `\\x1b`.

    Newlines and tabs stay, and so does every letter of every script. Escaping twice is escaping once.
    """
    return _ACTING.sub(lambda found: found.group().encode("unicode_escape").decode(), text)
