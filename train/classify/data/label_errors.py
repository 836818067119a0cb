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


def refuse_label(value: Any, split: Split, index: int, expected: str, advice: str = "") -> NoReturn:
    """Raises JloraError about the label of one row; `advice` is what to do, a sentence without its period."""
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str):
            require_text(text, f"{split.where(index)}: the label")
    found = "an empty label" if value is None or value == "" else f"the label {repr(value)[:200]}"
    if is_minus_one(value):
        advice = "-1 marks a row without a label, which only data.test may have: delete such rows from the other splits"
    raise JloraError(f"{split.where(index)}: expected {expected}; found {found}{advice and f'. {advice}'}")


def refuse_kind(split: Split, index: int, kind: str, most: str | None, advice: str) -> NoReturn:
    """Raises JloraError about a label that is of another kind than most.

    Args:
      kind, most: the kinds (`label_kind`) of this label and of most; None if no row has a label.
      advice: what to do about a label that is not empty.
    """
    usual = "text" if most == "text" else f"a {most}"
    if kind == "nothing":
        expected = f"{usual}, as most rows have" if most else "a label"
        raise JloraError(f"{split.where(index)}: expected {expected}; found an empty label. Fill it in; or {_SKIP}")
    if most == "list":
        advice = 'Write it as a list too, such as ["a"]'
    expected = f"{usual} as in most rows" if most else "text, a number or a list of them"
    refuse_label(split.label[index], split, index, expected, f"{advice}. {_SKIP}")


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
