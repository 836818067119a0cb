"""Finds which marks a book quotes speech with, and separates the speech in a paragraph from the rest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

Marks = Literal['"', "“", "‘", "'", "«", "—"]

_END = r"""(?<=[.,!?;:…—"”-])"""
"""Speech ends in a punctuation mark inside its quotes. `the "Lady Vain"` is a name, and `boys'` an apostrophe."""
_SPEECH: dict[str, re.Pattern[str]] = {
    '"': re.compile(rf'"(?P<said>[^"]*?)(?:{_END}"|(?P<open>$))|"[^"]*"'),
    "“": re.compile(rf"“(?P<said>[^”]*?)(?:{_END}”|(?P<open>$))|“[^”]*”"),
    "«": re.compile(r"«(?P<said>[^»]*?)(?:»|(?P<open>$))"),
    "‘": re.compile(rf"(?<!\w)‘(?:[^‘’.,!?;:]{{1,40}}’(?!\w)|(?P<said>.*?)(?:{_END}’(?!\w)|(?P<open>$)))"),
    "'": re.compile(rf"(?<!\w)'(?:[^'.,!?;:]{{1,40}}'(?!\w)|(?P<said>.*?)(?:{_END}'(?!\w)|(?P<open>$)))"),
}


class Paragraph(NamedTuple):
    """What a paragraph says and tells.

    Attributes:
      said: the speech, joined by spaces; "" if there is none.
      told: the rest, with `|` in the place of each speech.
      is_open: whether the last quote is not closed: the speaker goes on in the next paragraph.
    """

    said: str
    told: str
    is_open: bool


def find_marks(paragraphs: Sequence[str]) -> Marks | None:
    """Returns the mark that begins the most paragraphs, which is the one that opens speech; None if none does."""
    first: Counter[Marks] = Counter()
    for text in paragraphs:
        if found := next((mark for mark in (*_SPEECH, "—") if text.startswith(mark)), None):
            first[found] += 1  # type: ignore[index]
    return first.most_common(1)[0][0] if first else None


def separate(paragraph: str, marks: Marks) -> Paragraph:
    """Separates the speech of a paragraph from the rest.

    With `—`, as in Joyce, the paragraph is speech if it begins with a dash, and what is told is not marked:
    `attribution.cut_clause` finds it.
    """
    text = " ".join(paragraph.split())
    if marks == "—":
        return Paragraph(text[1:].strip(), "|", False) if text.startswith("—") else Paragraph("", text, False)
    said, told, start, is_open = "", "", 0, False
    for match in _SPEECH[marks].finditer(text):
        speech = match["said"]
        if speech is None or not speech.strip():
            continue
        between = text[start : match.start()]
        said = _join(said, speech.strip(), between)
        told += between + "|"
        start, is_open = match.end(), match["open"] is not None
    return Paragraph(_end(said) if text[start:] else said, told + text[start:], is_open)


def _join(said: str, more: str, between: str) -> str:
    """Puts two parts of a speech together; a comma is a full stop if the words `between` end a sentence."""
    return f"{_end(said) if between.rstrip().endswith('.') else said} {more}".strip()


def _end(said: str) -> str:
    """Ends the sentence of a speech that went on with `said Alice`."""
    return said[:-1] + "." if said.endswith(",") else said
