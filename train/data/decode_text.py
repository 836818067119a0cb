"""Reads a text file in a given encoding, without its byte order mark."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path

from jlora.errors import JloraError

_UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decode_text(path: Path, name: str, encoding: str, row_after: Callable[[str], int]) -> str:
    """Reads the text of a file, without a byte order mark; line ends are unchanged.

    Args:
      name: the file's name in errors.
      row_after: returns the data row (0 for the header) of the first wrong byte, from the text before it.

    Raises:
      JloraError: a byte is not in `encoding`, with its row; or the encoding is unknown.
    """
    try:
        return path.read_bytes().decode(encoding).removeprefix("\ufeff")
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
            f"{name}, {f'data row {row}' if row else 'the header'} (line {line}): "
            f"the byte 0x{error.object[error.start]:02x} is not {encoding} text; "
            "save the file as UTF-8, or name its encoding, for example data.encoding=latin-1"
        ) from error
    except (LookupError, ValueError) as error:
        raise JloraError(f"data.encoding={encoding}: not a text encoding; expected utf-8, latin-1, ...") from error
