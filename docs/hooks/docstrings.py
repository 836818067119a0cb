"""A griffe extension that prepares docstrings, which are plain text with backticks, for Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

_MARKUP = re.compile(r"(`[^`]*`)|([*<\[\]])")
_SHARED = re.compile(r"^  (\w+(?:, \w+)+): (.*(?:\n {4}.*)*)", re.MULTILINE)
"""`only, tied: ...`: one description of several attributes."""


def escaped(text: str) -> str:
    """The text with Markdown's signs escaped outside of backticks and of indented blocks of code."""
    return "\n\n".join(
        block if block.startswith("    ") else _MARKUP.sub(lambda found: found[1] or "\\" + found[2], block)
        for block in text.split("\n\n")
    )


def one_by_one(text: str) -> str:
    """The text with an entry for each attribute, where one describes several: griffe reads one name an entry."""
    before, title, rest = text.partition("Attributes:\n")
    section, blank, after = rest.partition("\n\n")
    section = _SHARED.sub(lambda found: "\n".join(f"  {name}: {found[2]}" for name in found[1].split(", ")), section)
    return before + title + section + blank + after


class PlainDocstrings(griffe.Extension):
    """Changes each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = escaped(one_by_one(obj.docstring.value))
