"""Reads a CSV, TSV, JSON, JSON Lines or Parquet file into columns, with exact errors.

Data rows are counted from 1; the header and blank lines are not counted.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jlora.errors import JloraError
from jlora.files.bounded_json import refuse_duplicates
from jlora.files.file_kind import kind_of_file
from jlora.files.unicode_text import require_text
from train.data.decode_text import decode_text
from train.data.unreadable import describe_folder, describe_line, describe_nearest, describe_no_tabs, describe_suffix

_LONGEST_CSV_FIELD = 2**31 - 1
_OF_LIST = "A file with one list of objects must end in .json"


@dataclass(frozen=True)
class Table:
    """A table of columns of equal length.

    Attributes:
      name: the file or hub set as the user gave it.
      columns: {column: one value for each data row}: text from CSV and TSV, else Python values.
      class_names: {column: class names} of columns that have them (a ClassLabel of `datasets`).
    """

    name: str
    columns: dict[str, list[Any]]
    class_names: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def column(self, column: str, key: str) -> list[Any]:
        """Returns the values of a column; the error for a missing one names the config `key` and all columns."""
        if column not in self.columns:
            raise JloraError(
                f"{self.name}: expected a column {column!r} ({key}), found the columns {', '.join(self.columns)}"
                f"{describe_nearest(column, key, self.columns)}"
            )
        return self.columns[column]

    def cell(self, column: str, row: int) -> Any:
        """Returns the value in one row, counted from 0; None if there is no such column."""
        return self.columns[column][row] if column in self.columns else None

    def texts_by_row(self, column: str, key: str) -> Callable[[int], str]:
        """Returns a function that returns the text of a row, counted from 0, or raises JloraError if it is not text.

        Raises JloraError if there is no such column.
        """
        values = self.column(column, key)
        return lambda row: require_text(values[row], f"{self.where(row)}, column {column!r} ({key})")

    def where(self, row: int) -> str:
        """Returns the name of a row, counted from 0, for errors: `file, data row 8` for row 7."""
        return f"{self.name}, data row {row + 1}"


def read_table(path: Path, name: str, encoding: str = "utf-8", separator: str = ",", also: Sequence[str] = ()) -> Table:
    """Reads the whole file as a Table; the suffix decides the format. `name` is its name in errors.

    The suffixes are .csv, .tsv, .json, .jsonl and .parquet. CSV is read by RFC 4180 (quoted fields may hold separators,
    quotes and line ends), TSV without any quoting, JSON as one list of objects, JSONL as one object per line. Values of
    CSV and TSV are text. A key that only other objects have is None.

    Args:
      separator: of the fields of a CSV file.
      also: other suffixes that the caller reads itself, for errors.

    Raises:
      JloraError: another format, an empty file or one without data rows, text that is not in `encoding`, a column that
        is there twice, or a row that does not fit, with its number.
    """
    if path.is_dir():
        raise JloraError(describe_folder(path, name, (*also, *_READERS)))
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise JloraError(describe_suffix(path.suffix, name, (*also, *_READERS)))
    if path.stat().st_size == 0:
        raise JloraError(f"{name}: expected rows, found an empty file. Save or download it again")
    if reader is not _read_parquet and (kind := kind_of_file(path)):
        raise JloraError(f"{name}: expected text ({path.suffix}), found {kind}")
    table = _read_csv(path, name, encoding, separator) if reader is _read_csv else reader(path, name, encoding)
    if not any(table.columns.values()):
        raise JloraError(f"{name}: expected data rows, found none; columns: {', '.join(table.columns) or 'none'}")
    return table


def _read_csv(path: Path, name: str, encoding: str, separator: str = ",") -> Table:
    records = _csv_records(decode_text(path, name, encoding, _csv_row), name, separator)
    header = next(records, (1, []))
    if len(header[1]) == 1 and (others := [mark for mark in ",;|\t" if mark != separator and mark in header[1][0]]):
        reads = "rename the file to end in .tsv" if others[0] == "\t" else f"set data.separator={others[0]!r}"
        raise JloraError(
            f"{name}: expected columns separated by {separator!r} (data.separator); found one column"
            f" {header[1][0]!r}: {reads}"
        )
    advice = "Put a field that holds the separator or a line break in double quotes"
    return _from_records(itertools.chain([header], records), name, advice)


def _read_tsv(path: Path, name: str, encoding: str) -> Table:
    text = decode_text(path, name, encoding, lambda before: _jsonl_row(before) - 1)  # the header is no row
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if (first := next(filter(None, lines), "")) and "\t" not in first and ("," in first or ";" in first):
        raise JloraError(f"{name}: {describe_no_tabs(first)}")
    records = ((number, line.split("\t")) for number, line in enumerate(lines, 1) if line)
    advice = (
        "A field of a .tsv file cannot hold a tab or a line break, and quotes do not help: write spaces instead, or"
        " save the table as .csv or .jsonl"
    )
    return _from_records(records, name, advice)


def _read_json(path: Path, name: str, encoding: str) -> Table:
    text = decode_text(path, name, encoding, _json_row)
    try:
        objects = json.loads(text, object_pairs_hook=refuse_duplicates)
    except json.JSONDecodeError as error:
        where = f"data row {_json_row(text[: error.pos])} (line {error.lineno})"
        found, hint = "more after the first value", "if the file has one object a line, rename it to end in .jsonl"
        if error.msg != "Extra data":
            found, hint = error.msg, "correct it there; or if the file was cut off, copy it again"
        raise JloraError(f"{name}, {where}: expected JSON, found: {found}; {hint}") from error
    except (ValueError, RecursionError) as error:
        raise JloraError(
            f"{name}, data row {_json_row(text)}: expected JSON that can be read, found: {error}"
        ) from error
    if not isinstance(objects, list):
        keys = f"an object with the keys {', '.join(objects)}" if isinstance(objects, dict) else "something else"
        raise JloraError(f"{name}: expected a list of objects, [{{...}}, ...], found {keys}. Save the list alone")
    return _from_objects(objects, name)


def _read_jsonl(path: Path, name: str, encoding: str) -> Table:
    text = decode_text(path, name, encoding, _jsonl_row)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    objects = []
    for row, (number, line) in enumerate(lines, 1):
        try:
            objects.append(json.loads(line, object_pairs_hook=refuse_duplicates))
        except (ValueError, RecursionError) as error:
            wrong = describe_line(line, error)
            if lines[0][1].lstrip().startswith("["):
                wrong = f"expected a JSON object on each line, found {line[:60]!r}. {_OF_LIST}"
            raise JloraError(f"{name}, data row {row} (line {number}): {wrong}") from error
    return _from_objects(objects, name, of_list=_OF_LIST)


def _read_parquet(path: Path, name: str, encoding: str) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        found = kind_of_file(path) or "another file. If it is CSV or JSON, give it that ending"
        if found.startswith("a Parquet"):
            found = f"a damaged one ({error}). Copy or download it again"
        raise JloraError(f"{name}: expected a Parquet file, found {found}") from error
    columns = {column: _values(table[column], name, column) for column in table.column_names}
    return Table(name, columns, class_names(_features((table.schema.metadata or {}).get(b"huggingface"), name)))


def _values(cells: Any, name: str, column: str) -> list[Any]:
    """Converts the cells of an Arrow column to Python values."""
    try:
        return without_filled(cells.to_pylist())
    except (ArithmeticError, ValueError) as error:  # such as a date after the year 9999
        raise JloraError(f"{name}, column {column!r}: a value of type {cells.type} cannot be read ({error})") from error


def _features(metadata: bytes | None, name: str) -> dict[str, Any]:
    """Returns the features that `datasets` stored in a Parquet file."""
    try:
        stored = json.loads(metadata or b"{}")
        features = stored.get("info", {}).get("features", {})
        return {column: feature for column, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, RecursionError, AttributeError) as error:
        shown = ascii(metadata[:60] if metadata else metadata)
        expected = 'expected metadata "huggingface" as datasets writes it, {"info": {"features": {...}}}, or none'
        raise JloraError(f"{name}: {expected}; found {shown}") from error


def without_filled(value: Any) -> Any:
    """Removes the entries that are None from the objects in a value of an Arrow table, at every depth.

        {"a": None, "b": [{"c": None}, None]} -> {"b": [{}, None]}

    All objects of a column share one schema, so Arrow fills in the keys that only other objects had.
    """
    if isinstance(value, dict):
        return {key: without_filled(entry) for key, entry in value.items() if entry is not None}
    return [without_filled(entry) for entry in value] if isinstance(value, list) else value


def class_names(features: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Returns {column: class names} of ClassLabels and lists of them, from `Features.to_dict()`.

        {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}} -> {"label": ("bad", "good")}

    Columns of other kinds are left out.
    """
    found = {column: _names_of(feature) for column, feature in features.items()}
    return {column: names for column, names in found.items() if names}


def _names_of(feature: Any) -> tuple[str, ...]:
    if not isinstance(feature, dict):
        return ()
    names = feature.get("names")
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        return tuple(names)
    return _names_of(feature.get("feature"))


_READERS: dict[str, Callable[[Path, str, str], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}


def _csv_records(text: str, name: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (line where the record begins, fields) of every record that is not a blank line."""
    csv.field_size_limit(_LONGEST_CSV_FIELD)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    line, row = 1, 0
    try:
        for fields in reader:
            if fields:
                yield line, fields
                row += 1
            line = reader.line_num + 1
    except csv.Error as error:
        where = f"data row {row}" if row else "the header"
        unclosed = "unexpected end" in str(error)
        found = 'a field that begins with " and is never closed' if unclosed else str(error)
        raise JloraError(
            f"{name}, {where} (from line {line}): expected CSV by RFC 4180, found {found}. "
            'Quote a field that holds quotes, and double them: "so ""called"" quotes"'
        ) from error


def _from_records(records: Iterator[tuple[int, list[str]]], name: str, advice: str) -> Table:
    header = next(records, (1, []))[1]
    repeated = [column for column in header if header.count(column) > 1]
    if repeated:
        raise JloraError(f"{name}: expected columns of different names, found {repeated[0]!r} twice. Rename one")
    rows = []
    for row, (line, fields) in enumerate(records, 1):
        if len(fields) != len(header):
            where, there = f"{name}, data row {row} (line {line})", ", ".join(header)
            raise JloraError(
                f"{where}: expected {len(header)} fields ({there}), found {len(fields)}. {advice};"
                " data.skip_bad_rows does not leave out such a row, because those after it may be read wrongly"
            )
        rows.append(fields)
    return Table(name, {column: [fields[i] for fields in rows] for i, column in enumerate(header)})


def _from_objects(objects: list[Any], name: str, of_list: str = "Correct the row") -> Table:
    for row, found in enumerate(objects, 1):
        if not isinstance(found, dict):
            shown = json.dumps(found)[:60]
            expected = 'expected an object such as {"text": "..."}'
            advice = of_list if isinstance(found, list) else "Correct the row"
            raise JloraError(f"{name}, data row {row}: {expected}, found {shown}. {advice}")
    names = dict.fromkeys(column for found in objects for column in found)
    return Table(name, {column: [found.get(column) for found in objects] for column in names})


def _csv_row(before: str) -> int:
    csv.field_size_limit(_LONGEST_CSV_FIELD)
    return sum(1 for fields in csv.reader(io.StringIO(before + "?", newline="")) if fields) - 1


def _jsonl_row(before: str) -> int:
    return sum(1 for line in (before + "?").split("\n") if line.strip("\r"))


def _json_row(before: str) -> int:
    decoder, row, start = json.JSONDecoder(object_pairs_hook=refuse_duplicates), 1, before.find("{")
    while start >= 0:
        try:
            end = decoder.raw_decode(before, start)[1]
        except (ValueError, RecursionError):
            break
        row, start = row + 1, before.find("{", end)
    return row
