"""The class names of a classifier's adapter."""

from __future__ import annotations

from pathlib import Path

from jlora.errors import FileError
from jlora.files.bounded_json import read_json
from jlora.peft.folder import head_rows


def read_labels(folder: Path) -> tuple[tuple[str, ...], str | None]:
    """Returns (the class names of an adapter, in the order of its outputs; its problem type, or None).

    They are in labels.json, which jlora classify writes into the adapter's folder. Without that file the classes are
    called LABEL_0, LABEL_1 and so on, as transformers calls them.

    Raises:
      FileError: labels.json does not name the adapter's outputs, or the adapter has no head.
    """
    count = head_rows(folder)
    if count is None:
        raise FileError(f"{folder}: expected an adapter with a classification head, found none in its weights")
    file = folder / "labels.json"
    if not file.is_file():
        return tuple(f"LABEL_{index}" for index in range(count)), None
    stored = read_json(file)
    names = stored.get("id2label")
    if not isinstance(names, dict) or set(names) != {str(index) for index in range(count)}:
        raise FileError(f"{file}: id2label: expected a name for each of the head's {count} outputs")
    return tuple(str(names[str(index)]) for index in range(count)), stored.get("problem_type")
