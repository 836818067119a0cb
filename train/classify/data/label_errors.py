"""The errors about labels, each with what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from jlora.errors import JloraError
from jlora.files.unicode_text import require_text
from jlora.printable import counted
from train.classify.data.label_values import to_class_id
from train.classify.data.splits import Split

_SKIP = "data.skip_bad_rows=true leaves such rows out"


def is_minus_one(value: Any) -> bool:
    """Returns whether the label is -1, which marks an unlabelled row of a test split."""
    return to_class_id(value) == -1 or value == [-1]


def refuse_label(value: Any, split: Split, index: int, expected: str) -> NoReturn:
    """Raises JloraError about the label of one row."""
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str):
            require_text(text, f"{split.where(index)}: the label")
    found = "an empty label" if value is None or value == "" else f"the label {repr(value)[:200]}"
    hint = " (-1, an unlabelled row, is allowed in a test split only)" if is_minus_one(value) else ""
    raise JloraError(f"{split.where(index)}: found {found}{hint}; expected {expected}")


def refuse_kind(split: Split, index: int, kind: str, most: str | None, advice: str) -> NoReturn:
    """Raises JloraError about a label that is of another kind than most.

    Args:
      kind, most: the kinds (`label_kind`) of this label and of most; None if no row has a label.
      advice: what to do about a label that is not empty.
    """
    usual = "text" if most == "text" else f"a {most}"
    if kind == "nothing":
        rows = f"; most rows have {usual}" if most else ""
        raise JloraError(f"{split.where(index)}: found an empty label{rows}. Fill it in; or {_SKIP}")
    expected = f"{usual} as in most rows" if most else "text, a number or a list of them"
    refuse_label(split.label[index], split, index, f"{expected}; {advice}. {_SKIP}")


def refuse_one_class(train: Split, name: str, are_given: bool, splits: Mapping[str, Split]) -> NoReturn:
    """Raises JloraError about training rows that all have the class `name`.

    Args:
      are_given: whether `data.label_names` or the data set has this name and no other.
      splits: all splits. Rows of the training file that were split off may have had the other classes.
    """
    only = f"expected two classes or more, found {name!r} alone"
    if are_given:
        raise JloraError(f"data.label_names, or the names that the data set has: {only}. Name all classes")
    used = set(zip(train.source, train.row, strict=True))
    for other, split in splits.items():
        rows = set(zip(split.source, split.row, strict=True)) - used
        held_out = sum(source in train.source[:1] for source, _ in rows)
        if held_out:
            raise JloraError(
                f"{train.source[0]}: {only} among the {counted(len(train), 'row')} left for training;"
                f" {counted(held_out, 'row')} became {other} data. Add rows of other classes, or give"
                f" data.{other}=FILE, so that no row is split off"
            )
    raise JloraError(f"{train.source[0]}: {only}")
