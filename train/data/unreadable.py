"""Says what a path that is no table is, and which file to give instead."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from jlora.errors import nearest
from jlora.files.file_kind import file_kind

_NO_TABLE = re.compile(r"(tokenizer|special_tokens|added_tokens|vocab|preprocessor|.*config\b|.*\.index\b).*\.json")
"""Files of models that end like a table."""
_SAVED_BY_DATASETS = ("dataset_info.json", "dataset_dict.json")


def describe_folder(folder: Path, name: str, suffixes: Iterable[str]) -> str:
    """Returns the error about a folder, called `name`, where a file with one of `suffixes` is expected."""
    suffixes = tuple(suffixes)
    expected = f"expected a file of rows ({', '.join(suffixes)})"
    for file, kind in (("config.json", "a model"), ("adapter_config.json", "an adapter")):
        if (folder / file).is_file():
            return f"{name}: {expected}, found the folder of {kind} (it has {file})"
    if any((folder / file).is_file() for file in _SAVED_BY_DATASETS):
        loaded = f"datasets.load_from_disk({name!r})" + "['train']" * (folder / "dataset_dict.json").is_file()
        return (
            f"{name}: {expected}, found a folder that datasets' save_to_disk wrote. Write one:"
            f" {loaded}.to_parquet('train.parquet')"
        )
    files = [file.name for file in folder.iterdir() if file.suffix.lower() in suffixes]
    inside = sorted(file for file in files if not _NO_TABLE.fullmatch(file))
    here = f". Give one or a list of those in it: {', '.join(inside[:5])}" if inside else " without any"
    return f"{name}: {expected}, found a folder{here}"


def describe_suffix(suffix: str, name: str, suffixes: Iterable[str]) -> str:
    """Returns the error about a file, called `name`, whose `suffix` is not one of `suffixes`."""
    expected = f"{name}: expected a name that ends in one of {', '.join(suffixes)}; found {suffix or 'no ending'}"
    if suffix.lower() in (".xlsx", ".xls", ".ods"):
        return f"{expected}. Save the sheet as CSV in UTF-8"
    if suffix.lower() in (".gz", ".bz2", ".xz", ".zst", ".zip"):
        return f"{expected}. Unpack it first"
    return f"{expected}. Convert it, or rename it if it is one of these"


def describe_line(line: str, error: Exception) -> str:
    """Returns why a line of a .jsonl file is not one JSON object, and what to do.

    Args:
      error: what the JSON parser raised.
    """
    reason, shown = getattr(error, "msg", str(error)), line[:60]
    end = getattr(error, "pos", len(line))
    if reason == "Extra data" and line[end:].strip() == ",":
        return (
            "expected one object on the line, found a comma after it. Delete the commas at the ends of the lines, or"
            " put [ and ] around all and call the file .json"
        )
    if line.strip() in ("{", "[{"):
        return (
            f"expected a whole JSON object on one line, found {line.strip()}. Write each object on a line of its own:"
            " jq -c . FILE, or pandas' to_json(FILE, orient='records', lines=True)"
        )
    if kind := file_kind(line.encode("utf-8", "replace")):
        return f"expected JSON, found {kind}"
    return (
        f"expected a JSON object, found {shown!r} ({reason}). Correct the line; data.skip_bad_rows leaves out rows with"
        " wrong values, but not what is no JSON"
    )


def describe_nearest(column: str, key: str, columns: Iterable[str]) -> str:
    """Returns the end of the error about a missing column: what to set `key`, data.text or --text, to."""
    if "=" in key:  # data.format=alpaca
        return f". Rename the columns, or leave out {key.partition('=')[0]}"
    said = "give {} {}" if key.startswith("--") else "set {}={}"
    if same := [other for other in columns if other.strip().lower() == column.strip().lower()]:
        return f"; {said.format(key, same[0])}"
    return f"{nearest(column, columns)}. {key} names it"


def describe_no_tabs(header: str) -> str:
    """Returns what is wrong with the header of a .tsv file whose columns something else separates, and what to do."""
    also = "" if "," in header else ", and set data.separator=;"
    return f"expected columns separated by tabs, found one column {header[:60]!r}. Rename the file to end in .csv{also}"
