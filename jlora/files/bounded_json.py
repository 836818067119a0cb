"""Untrusted JSON: bounded in size and depth, without duplicate keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jlora.errors import FileError
from jlora.files.file_kind import file_kind
from jlora.files.limits import LARGEST_JSON
from jlora.files.path_checks import require_own

_AGAIN = "Copy or download it again"
_NAMES = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "true or false", type(None): "null"}


def read_json(file: Path, largest: int = LARGEST_JSON) -> dict[str, Any]:
    """Reads the object in a JSON file of at most `largest` bytes.

    Raises:
      FileError: the file is missing, larger, a link out of its folder or not JSON, has a duplicate key, or holds
        something other than an object.
    """
    if not file.is_file():
        raise FileError(f"{file}: expected a JSON file; found none")
    require_own(file)
    with file.open("rb") as stream:
        text = stream.read(largest + 1)
    if len(text) > largest:
        raise FileError(f"{file}: expected JSON of at most {largest} bytes; found {file.stat().st_size}")
    return parse_json(text, file)


def parse_json(text: bytes, file: Path) -> dict[str, Any]:
    """Parses `text`, UTF-8, as a JSON object.

    Raises FileError, which begins with `file`, if it is not JSON, not an object or has a duplicate key.
    """
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=refuse_duplicates)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{file}: expected JSON; found{_say_what_is_there(text, error)}") from error
    if not isinstance(value, dict):
        raise FileError(f"{file}: expected a JSON object, {{...}}; found {_NAMES[type(value)]}. {_AGAIN}")
    return value


def _say_what_is_there(text: bytes, error: Exception) -> str:
    if not text.strip():
        return f" an empty file. {_AGAIN}"
    if kind := file_kind(text):
        return f" {kind}"
    return f": {error}. Correct it; or if the file was cut off, copy or download it again"


def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Makes an object of its keys and values: `json.loads(text, object_pairs_hook=refuse_duplicates)`.

    Raises ValueError for a duplicate key, because some readers take the first value and others the last.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} twice")
        found[key] = value
    return found
