"""Selects the rows that are used of each table: reads them, samples them, holds some out for validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from jlora.errors import JloraError
from jlora.printable import counted
from train.data.random_streams import SAMPLE_STREAMS, Stream, permutation
from train.data.read_tables import read_tables
from train.data.table_files import Table
from train.lm.text.formats import Format, detect_format, used_columns
from train.lm.text.text_files import read_text_or_table

if TYPE_CHECKING:
    from train.lm.config import DataSection


@dataclass(frozen=True)
class TableRows:
    """The rows of a table that are used.

    Attributes:
      table: the whole table.
      form: its format.
      rows: int64 (n,), the rows that are used, counted from 0, ascending.
    """

    table: Table
    form: Format
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def read_rows(split: str, config: DataSection, notes: list[str]) -> list[TableRows]:
    """Reads all rows of `data.{split}`, one TableRows for each table.

    The format is `config.format`, else that of `detect_format`, which is appended to `notes`; so are the table's
    columns that are not used.

    Args:
      split: "train" or "validation"; `config` must have it.

    Raises:
      JloraError: data cannot be read, or the columns fit no format.
    """
    found, source, read_file = [], getattr(config, split), read_text_or_table(config)
    for table in read_tables(source, split, config, read_file):
        form = config.format or detect_format(table, config)
        if config.format is None:
            notes.append(f"{split}: {table.name} is read as data.format={form} (columns: {', '.join(table.columns)})")
        used = used_columns(table, form, config)
        if unused := [column for column in table.columns if column not in used]:
            notes.append(f"{split}: {table.name}: columns that are not used: {', '.join(unused)}")
        found.append(TableRows(table, form, np.arange(len(next(iter(table.columns.values()))))))
    return found


def take_rows(parts: Sequence[TableRows], indices: np.ndarray) -> list[TableRows]:
    """Takes the rows at `indices` (int64, ascending), counted over all parts; parts without rows are dropped."""
    ends = np.cumsum([len(part) for part in parts])
    places = np.split(indices, np.searchsorted(indices, ends[:-1]))
    taken = [
        replace(part, rows=part.rows[place - (end - len(part))])
        for part, place, end in zip(parts, places, ends, strict=True)
    ]
    return [part for part in taken if len(part)]


def sample_rows(parts: Sequence[TableRows], max_rows: int | None, split: str, seed: int) -> list[TableRows]:
    """Returns all rows, or a seeded sample of `max_rows`, in the order of the files.

    All are returned if `max_rows` is None or there are no more. Parts without a row in the sample are left out.

    Args:
      split: "train" or "validation", which draw different samples.
    """
    count = sum(map(len, parts))
    if max_rows is None or count <= max_rows:
        return list(parts)
    return take_rows(parts, np.sort(permutation(count, SAMPLE_STREAMS[split], seed)[:max_rows]))


def hold_out_rows(parts: Sequence[TableRows], fraction: float, seed: int) -> tuple[list[TableRows], list[TableRows]]:
    """Returns (the rest, a seeded share of the rows), both in the order of the files.

    The share has round(fraction * number of rows), at least one.

    Raises:
      JloraError: no row would be left.
    """
    count = sum(map(len, parts))
    held_out = max(1, round(fraction * count))
    if held_out >= count:
        raise JloraError(
            f"{parts[0].table.name}: {counted(count, 'row')} in all, too few to hold out some for validation. Add"
            " rows, or give data.validation=FILE"
        )
    shuffled = permutation(count, Stream.VALIDATION_SPLIT, seed)
    return take_rows(parts, np.sort(shuffled[held_out:])), take_rows(parts, np.sort(shuffled[:held_out]))
