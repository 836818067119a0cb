"""Shortens a text at the end of a sentence."""

from __future__ import annotations

import re

_END = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)[.!?…][\"”’')]*\s+")


def first_sentences(text: str, most: int) -> str:
    """Returns the first sentences of a text, in at most `most` characters; the first one even if it is longer."""
    ends = [match.end() for match in _END.finditer(text)] + [len(text)]
    return text[: max((end for end in ends if end <= most), default=ends[0])].rstrip()


def last_sentences(text: str, most: int) -> str:
    """Returns the last sentences of a text, in at most `most` characters; the last one even if it is longer."""
    starts = [0] + [match.end() for match in _END.finditer(text) if match.end() < len(text)]
    return text[min((start for start in starts if len(text) - start <= most), default=starts[-1]) :]
