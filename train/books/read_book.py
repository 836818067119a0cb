"""Reads a book from a text file, as it was downloaded, and splits it into paragraphs."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from jlora.errors import JloraError

_START = re.compile(r"^\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG.*?\*\*\*[^\n]*\n", re.MULTILINE | re.DOTALL)
_OLD_START = re.compile(r"^\*END.?THE SMALL PRINT![^\n]*\n", re.MULTILINE)
_END = re.compile(r"^(?:\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG|End of (?:the )?Project Gutenberg)", re.MULTILINE)
_CREDITS = re.compile(r"\s*(?:Produced by|E-text prepared by|Transcribed (?:by|from))[^\n]*(?:\n[^\n]+)*\n")
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_PICTURE = re.compile(r"\[Illustration[^\]]{0,500}\]")
_EMPHASIS = re.compile(r"(?<!\w)_([^_\n]+(?:\n[^_\n]+)*)_(?!\w)")
_DASH = re.compile(r"(?<!-)--(?!-)")
_MOST_CONTROL = 1e-3
"""A text with a larger share of control characters is a binary file."""


def read_book(path: Path, name: str) -> str:
    """Reads a book: without licence, byte order mark, pictures and marks of emphasis, with `—` for
    `--` and `\\n` as line end.

    The encoding is found from the bytes: UTF-16 if they begin with its mark, UTF-8 if they are valid UTF-8, or else
    Windows-1252, which includes the printable part of Latin-1.

    Args:
      name: the file's name in errors.

    Raises:
      JloraError: the file is a folder, is empty, or does not hold text.
    """
    if path.is_dir():
        raise JloraError(f"{name}: is a folder; expected a text file")
    text = strip_licence(_decode(path.read_bytes(), name))
    text = _DASH.sub("—", _EMPHASIS.sub(r"\1", _PICTURE.sub("", text)))
    if not text.strip():
        raise JloraError(f"{name}: expected the text of a book, found an empty file")
    return text


def strip_licence(text: str) -> str:
    """Returns what is between the lines by which Project Gutenberg marks the start and the end of a book.

    A text without these lines is returned as it is. The credits after the first line are left out too.
    """
    start = _START.search(text) or _OLD_START.search(text)
    if start is not None:
        text = text[start.end() :]
        credits = _CREDITS.match(text)
        text = text[credits.end() :] if credits else text
    end = _END.search(text)
    return text[: end.start()] if end else text


def paragraphs(text: str) -> list[str]:
    """Splits a text at its blank lines; a text without blank lines has a paragraph in each line.

    The lines of a paragraph stay apart, without blanks around them.
    """
    parts = re.split(r"\n[ \t\f]*\n", text) if re.search(r"\n[ \t\f]*\n", text.strip()) else text.split("\n")
    lines = ("\n".join(line.strip() for line in part.strip().split("\n")) for part in parts)
    return [part for part in lines if part]


def _decode(data: bytes, name: str) -> str:
    if data.startswith(_UTF_16):
        text = data.decode("utf-16", errors="replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = data.decode("cp1252", errors="replace")
    if len(_CONTROL.findall(text)) > _MOST_CONTROL * len(text):
        raise JloraError(f"{name}: expected the text of a book, found a binary file; save it as plain text")
    return _CONTROL.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
