"""Escapes and shortens text from files, so that it cannot move the cursor, hide a line or reverse the reading order."""

from __future__ import annotations

import re

_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters other than newline and tab, line separators, direction marks and unpaired surrogates."""


_PLURALS = {"class": "classes"}

_LONG_WORD = re.compile(r"(\S{200})\S{101,}(\S{100})")


def printable(text: str) -> str:
    """Escapes each character that a terminal would act on or cannot show: ESC becomes `\\x1b`.

    Newlines, tabs and the letters of all scripts are kept. Escaping a second time changes nothing.
    """
    return _ACTING.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def counted(number: int, noun: str) -> str:
    """Returns the number with the noun: "1 row", "2,000 rows", "0 classes"."""
    return f"{number:,} {noun if number == 1 else _PLURALS.get(noun, f'{noun}s')}"


def shorten_words(text: str) -> str:
    """Cuts the middle out of each word of more than 400 characters: a key or a value could fill the screen.

    Shortening a second time changes nothing.
    """
    return _LONG_WORD.sub(r"\1…\2", text)
