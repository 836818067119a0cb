"""Reads a text file in a given encoding, without its byte order mark."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path

from jlora.errors import JloraError
from jlora.files.file_kind import file_kind, is_lfs_pointer

_START = 64
"""How many of a file's first bytes are looked at. In UTF-16 and UTF-32 each letter of a header has a zero byte."""
_UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decode_text(path: Path, name: str, encoding: str, row_after: Callable[[str], int]) -> str:
    """Reads the text of a file, without a byte order mark; line ends are unchanged.

    Args:
      name: the file's name in errors.
      row_after: returns the data row (0 for the header) of the first wrong byte, from the text before it.

    Raises:
      JloraError: a byte is not in `encoding`, with its row; the encoding is unknown, or cannot be that of the first
        bytes; or the file is a pointer of Git LFS.
    """
    data = path.read_bytes()
    _require_text(data, name, encoding)
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        if error.object[:2] in _UTF_16_MARKS and encoding.lower().replace("-", "") != "utf16":
            marks = error.object[:2].hex(" ")
            raise JloraError(
                f"{name}: expected {encoding} text; the file begins with the mark of UTF-16 ({marks}). Save it as"
                " UTF-8, or set data.encoding=utf-16"
            ) from error
        before = error.object[: error.start].decode(encoding, "replace")
        row, line = row_after(before), before.count("\n") + 1
        raise JloraError(
            f"{name}, {f'data row {row}' if row else 'the header'} (line {line}): expected {encoding} text, found the"
            f" byte 0x{error.object[error.start]:02x}. Save the file as UTF-8, or name its encoding, for example"
            " data.encoding=latin-1"
        ) from error
    except (LookupError, ValueError) as error:
        raise JloraError(
            f"data.encoding={encoding}: expected the name of a text encoding, such as utf-8 or latin-1; found none of"
            " this name"
        ) from error


def _require_text(data: bytes, name: str, encoding: str) -> None:
    """Refuses what decodes to text that nobody wrote: a pointer of Git LFS, UTF-16 read as UTF-8, and the reverse."""
    if is_lfs_pointer(data):
        raise JloraError(f"{name}: expected the rows; found {file_kind(data)}")
    wide = encoding.lower().replace("_", "-").startswith(("utf-16", "utf16", "utf-32", "utf32"))
    start, is_marked = data[:_START], data[:2] in _UTF_16_MARKS
    if not wide and not is_marked and b"\0" in start[:2]:
        order = "be" if start[:1] == b"\0" else "le"
        raise JloraError(
            f"{name}: expected {encoding} text; found zero bytes between the letters, as UTF-16 has. Save the file as"
            f" UTF-8, or set data.encoding=utf-16-{order}"
        )
    if wide and not is_marked and start.isascii() and b"\0" not in start:
        raise JloraError(
            f"{name}: expected {encoding} text; found bytes of one letter each, as UTF-8 has. Leave out data.encoding"
        )
