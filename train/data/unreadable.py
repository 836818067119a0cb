"""Says what a path that is no table is, and which file to give instead."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

_NO_TABLE = re.compile(r"(tokenizer|special_tokens|added_tokens|vocab|preprocessor|.*config\b|.*\.index\b).*\.json")
"""Files of models that end like a table."""
_SAVED_BY_DATASETS = ("dataset_info.json", "dataset_dict.json")


def describe_folder(folder: Path, name: str, suffixes: Iterable[str]) -> str:
    """Returns the error about a folder, called `name`, where a file with one of `suffixes` is expected."""
    suffixes = tuple(suffixes)
    expected = f"expected a file of rows ({', '.join(suffixes)})"
    for file, kind in (("config.json", "a model"), ("adapter_config.json", "an adapter")):
        if (folder / file).is_file():
            return f"{name}: is the folder of {kind} (it has {file}); {expected}"
    if any((folder / file).is_file() for file in _SAVED_BY_DATASETS):
        loaded = f"datasets.load_from_disk({name!r})" + "['train']" * (folder / "dataset_dict.json").is_file()
        return (
            f"{name}: is a folder that datasets' save_to_disk wrote; {expected}. Write one:"
            f" {loaded}.to_parquet('train.parquet')"
        )
    files = [file.name for file in folder.iterdir() if file.suffix.lower() in suffixes]
    inside = sorted(file for file in files if not _NO_TABLE.fullmatch(file))
    here = f"; give one or a list of those in it: {', '.join(inside[:5])}" if inside else ""
    return f"{name}: is a folder; {expected}{here}"


def describe_suffix(suffix: str, name: str, suffixes: Iterable[str]) -> str:
    """Returns the error about a file, called `name`, whose `suffix` is not one of `suffixes`."""
    expected = f"{name}: unknown suffix {suffix!r}; expected one of {', '.join(suffixes)}"
    if suffix.lower() in (".xlsx", ".xls", ".ods"):
        return f"{expected}. Save the sheet as CSV in UTF-8"
    if suffix.lower() in (".gz", ".bz2", ".xz", ".zst", ".zip"):
        return f"{expected}. Unpack it first"
    return expected


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
    expected = "not JSON" if hasattr(error, "msg") else "JSON that cannot be read"
    return f"{expected} ({reason}): {shown}"
