"""Reads text files as tables of one column, with the file, a paragraph or a line as a row."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jlora.errors import JloraError
from train.data.decode_text import decode_text
from train.data.table_files import Table, read_table

if TYPE_CHECKING:
    from train.lm.config import DataSection

SampleBy = Literal["document", "paragraph", "line"]
_BETWEEN = {"paragraph": re.compile(r"\n\s*\n"), "line": re.compile("\n")}


def read_text_or_table(config: DataSection) -> Callable[[Path, str, str, str], Table]:
    """Returns a function that reads .txt files by `data.sample_by`, and other files with `read_table`.

    It is called as read(path, name, encoding, separator), the arguments of `read_table`, and returns a Table. Texts of
    a .txt file are in the column `data.text`, as with `read_text`. It raises JloraError as `read_text` and `read_table`
    do.
    """

    def read(path: Path, name: str, encoding: str, separator: str) -> Table:
        if path.suffix.lower() == ".txt" and path.is_file():
            return read_text(path, name, encoding, config.sample_by, config.text)
        return read_table(path, name, encoding, separator, also=(".txt",))

    return read


def read_text(path: Path, name: str, encoding: str, sample_by: SampleBy, column: str) -> Table:
    """Reads a .txt file as a Table with one `column`; blank paragraphs and lines are skipped.

    Line ends become `\\n`. A document is the otherwise unchanged file; paragraphs, which blank lines separate, and
    lines come without the line ends around them.

        "a\\nb\\n\\nc\\n" -> ["a\\nb", "c"] by paragraph, ["a", "b", "c"] by line

    Args:
      name: the file's name in errors.
      sample_by: "document", "paragraph" or "line": what a row is.

    Raises:
      JloraError: the text is not in `encoding`, or the file has only white space.
    """
    text = decode_text(path, name, encoding, lambda before: len(_documents(before + "?", sample_by)))
    if not (documents := _documents(text, sample_by)):
        raise JloraError(f"{name}: expected text; found an empty file. Save or download it again")
    return Table(name, {column: documents})


def _documents(text: str, sample_by: SampleBy) -> list[str]:
    text = text.replace("\r\n", "\n")
    parts = [text] if sample_by == "document" else (part.strip("\n") for part in _BETWEEN[sample_by].split(text))
    return [part for part in parts if part.strip()]
