"""Text files as tables of one column: a document a file, a paragraph or a line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jlora.errors import JloraError
from train.data.table_files import Table, decode, read_table

if TYPE_CHECKING:
    from train.lm.config import DataSection

SampleBy = Literal["document", "paragraph", "line"]
_BETWEEN = {"paragraph": re.compile(r"\n\s*\n"), "line": re.compile("\n")}


def read_text_or_table(config: DataSection) -> Callable[[Path, str, str, str], Table]:
    """The function that reads a .txt file by `data.sample_by`, and any other as `read_table`."""

    def read(path: Path, name: str, encoding: str, separator: str) -> Table:
        if path.suffix.lower() == ".txt" and path.is_file():
            return read_text(path, name, encoding, config.sample_by, config.text)
        return read_table(path, name, encoding, separator)

    return read


def read_text(path: Path, name: str, encoding: str, sample_by: SampleBy, column: str) -> Table:
    """A .txt file as a Table with one `column`; blank paragraphs and lines are no rows. `name` stands in errors.

    Line ends become `\\n`; a document is the file as it is otherwise, the ends of paragraphs and lines are left out.

    Raises:
      JloraError: text that is not in `encoding`; a file with nothing but white space.
    """
    text = decode(path, name, encoding, lambda before: len(_documents(before + "?", sample_by)))
    if not (documents := _documents(text, sample_by)):
        raise JloraError(f"{name}: expected text; found an empty file")
    return Table(name, {column: documents})


def _documents(text: str, sample_by: SampleBy) -> list[str]:
    text = text.replace("\r\n", "\n")
    parts = [text] if sample_by == "document" else (part.strip("\n") for part in _BETWEEN[sample_by].split(text))
    return [part for part in parts if part.strip()]
