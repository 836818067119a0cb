"""Converts raw labels to numbers: infers the task and the class names, and refuses labels that do not fit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np

from jlora.errors import JloraError
from train.classify.data.label_errors import is_minus_one, refuse_kind, refuse_label, refuse_one_class
from train.classify.data.label_values import (
    SEPARATOR,
    are_class_ids,
    has_decimal_comma,
    is_yes,
    label_kind,
    multi_hot_length,
    number,
    spelling,
    to_class_id,
)
from train.classify.data.splits import Split
from train.data.bad_rows import read_each

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
_NO_SPLITS: Mapping[str, Split] = {}
_ADVICE = "Name the classes with data.label_names, or set task=regression if they are scores"


@dataclass(frozen=True)
class Labels:
    """The task and its classes.

    Attributes:
      problem_type: Hugging Face's name of the task.
      names: class i is called `names[i]`; a regression has the single name LABEL_0.
      numbers_are_ids: false if the names were collected from text labels: then a number as label is an error.
      multi_hot: whether the rows of a multi-label task have a 0 or 1 for each class.
      reason: what in the labels decided the task; empty if the config decided it.
    """

    problem_type: ProblemType
    names: tuple[str, ...]
    numbers_are_ids: bool = True
    multi_hot: bool = field(default=False, compare=False)
    reason: str = field(default="", compare=False)

    def __len__(self) -> int:
        """Returns how many outputs the head has."""
        return len(self.names)

    def config_entries(self) -> dict[str, Any]:
        """Returns the labels' keys of a Hugging Face config: id2label, label2id, problem_type."""
        return {
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: index for index, name in enumerate(self.names)},
            "problem_type": self.problem_type,
        }


def labels_of_config(id2label: dict[Any, str], problem_type: str | None) -> Labels:
    """Makes the Labels from a trained model's config; one output without a problem type is a regression.

    Args:
      id2label: {id, or its text: class name}; the names are put in the order of the ids as numbers.
      problem_type: None means regression for one class, single_label_classification for several.
    """
    names = tuple(name for _, name in sorted((int(index), name) for index, name in id2label.items()))
    guess = "regression" if len(names) == 1 else "single_label_classification"
    return Labels(cast(ProblemType, problem_type or guess), names)


def infer_labels(
    train: Split,
    task: str | None = None,
    names: tuple[str, ...] | None = None,
    splits: Mapping[str, Split] = _NO_SPLITS,
) -> Labels:
    """Infers the task and the class names from the training labels.

    Args:
      train: its `label` is read, and its `source` and `row` for errors.
      task: the config's. If None, lists and text such as `a;b` are multi-label, mostly decimal numbers a regression
        (unless they are ids from 0 that are written 0.0, 1.0), and everything else is single-label.
      names: from `data.label_names` or the data set. If None, whole numbers are the ids 0 .. k-1 called LABEL_0 .., and
        text labels are sorted. Lists of equal length that contain only 0 and 1 have an entry for each class.
      splits: all splits, for the error about one class alone.

    Raises:
      JloraError: the first wrong row, with its number: empty, of another kind than most, or not an id from 0 without a
        gap; labels that are ambiguous, with the key that decides; or one class alone for a single label.
    """
    inferred, reason = (cast(ProblemType, task), "") if task else _infer_task(train, names)
    if inferred == "regression":
        return Labels(inferred, ("LABEL_0",), reason=reason)
    count = multi_hot_length(train.label) if inferred == "multi_label_classification" else None
    if count and (names is None or len(names) == count):
        found = names or tuple(f"LABEL_{i}" for i in range(count))
        return Labels(inferred, found, multi_hot=True, reason=reason and "the labels have a 0 or 1 for each class")
    labels = Labels(inferred, names, reason=reason) if names else _collect_labels(train, inferred, reason)
    if inferred == "single_label_classification" and len(labels) < 2:
        refuse_one_class(train, labels.names[0], names is not None, splits)
    return labels


def of_one_kind(train: Split) -> Split:
    """Keeps the training rows whose labels are of the most frequent kind, for `data.skip_bad_rows`.

    The kinds are those of `label_kind`, but whole and decimal numbers are one. Rows without a label, or with something
    else, are left out; `train` itself is returned if there are no others.
    """
    kinds = [label_kind(value) for value in train.label]
    numbers = {"whole number", "decimal number"}
    general = ["number" if kind in numbers else kind for kind in kinds]
    counted = Counter(kind for kind in general if kind not in ("nothing", "something else"))
    if not counted:
        return train
    most = counted.most_common(1)[0][0]
    return train.take([index for index, kind in enumerate(general) if kind == most])


def encode_labels(split: Split, labels: Labels, name: str) -> np.ndarray:
    """Encodes the labels of the split called `name` as numbers.

    A class is given by its name, or by its id (1, "1", 1.0) if `labels.numbers_are_ids`. A -1 in the test split marks
    an unlabelled row: id -1, or NaN if the result is float32. Because -1 can be a score, a regression's test split is
    unlabelled only if every value is -1.

    Returns:
      Class ids int32 (n,), scores of a regression float32 (n,), or zeros and ones float32 (n, k) if a row may have
        several labels (a list, or `a;b` in CSV and TSV).

    Raises:
      JloraError: a label does not fit; the message names file and row.
    """
    return encode_rows(split, labels, name, skip=None)[1]


def encode_rows(split: Split, labels: Labels, name: str, skip: bool | None) -> tuple[Split, np.ndarray, list[str]]:
    """Encodes labels as `encode_labels` does, and returns (the rows, their labels, errors).

    Args:
      skip: whether rows whose labels do not fit are left out; the errors, one for each, say why. Otherwise the first
        one is raised; with false it suggests `data.skip_bad_rows`, with None it does not. If no row is left out, the
        rows are `split` itself.

    Raises:
      JloraError: a label does not fit, unless `skip`; or no row is left.
    """
    unlabelled = [name == "test" and is_minus_one(value) for value in split.label]
    if labels.problem_type == "regression" and not all(unlabelled):
        unlabelled = [False] * len(split)
    ids = {class_name: index for index, class_name in enumerate(labels.names)}
    given = [value for value, skipped in zip(split.label, unlabelled, strict=True) if not skipped]
    multi_hot = labels.multi_hot or multi_hot_length(given) == len(labels)

    def read(index: int) -> Any:
        value = split.label[index]
        if labels.problem_type == "regression":
            score = math.nan if unlabelled[index] else number(value)
            if not unlabelled[index] and not math.isfinite(score):
                refuse_label(value, split, index, "a finite number (task=regression)")
            return score
        if labels.problem_type == "single_label_classification":
            return -1 if unlabelled[index] else _class_id(value, labels, ids, split, index)
        if unlabelled[index]:
            return [math.nan] * len(labels)
        return _several(value, labels, ids, multi_hot, split, index)

    found, errors = read_each(range(len(split)), read, skip)
    dtype = np.int32 if labels.problem_type == "single_label_classification" else np.float32
    return split.take(list(found)) if errors else split, np.array(list(found.values()), dtype), errors


def is_labelled(encoded: np.ndarray) -> np.ndarray:
    """Returns bool (n,): which rows of the result of `encode_labels` have a label.

    A class id (int32) is one if it is at least 0; a row of float32 has a label if none of its numbers is NaN.
    """
    if encoded.dtype == np.int32:
        return encoded >= 0
    return ~np.isnan(encoded.reshape(len(encoded), -1)).any(axis=1)


def _infer_task(train: Split, names: tuple[str, ...] | None) -> tuple[ProblemType, str]:
    """Returns (the task, what in the labels decided it)."""
    kinds: list[str] = [label_kind(value) for value in train.label]
    if names is None and _are_numbers_with_commas(train.label):
        index = next(i for i, value in enumerate(train.label) if has_decimal_comma(value))
        advice = (
            "Set task=regression to read the comma as a decimal point, or task=single_label_classification for class"
        )
        refuse_label(train.label[index], train, index, "a number with a decimal point", f"{advice} names")
    if several := [value for value in train.label if _is_several(value, names)]:
        return "multi_label_classification", f"{several[0]!r} is several labels"
    if kinds.count("decimal number") > kinds.count("whole number"):
        kinds = ["decimal number" if kind == "whole number" else kind for kind in kinds]
    if names is None or "list" in kinds:
        _expect_one_kind(list(enumerate(kinds)), train)
    if "list" in kinds:
        return "multi_label_classification", "the labels are lists"
    if names is not None or "decimal number" not in kinds:
        return "single_label_classification", f"the labels are {'text' if kinds[0] == 'text' else kinds[0] + 's'}"
    if are_class_ids(train.label):
        return "single_label_classification", "the labels are ids from 0, written as decimal numbers"
    return "regression", "the labels are decimal numbers"


def _are_numbers_with_commas(values: Sequence[Any]) -> bool:
    """Returns whether all labels that are not empty are numbers, some with a decimal comma."""
    given = [value for value in values if label_kind(value) != "nothing"]
    return any(map(has_decimal_comma, given)) and all(
        has_decimal_comma(value) or label_kind(value).endswith("number") for value in given
    )


def _is_several(value: Any, names: Iterable[str] | None) -> bool:
    """Returns whether the label is text such as `a;b` and not the name of a class."""
    return isinstance(value, str) and len(_parts(value)) > 1 and value not in (names or ())


def _parts(cell: str) -> list[str]:
    return [part.strip() for part in cell.split(SEPARATOR) if part.strip()]


def _collect_labels(train: Split, problem_type: ProblemType, reason: str) -> Labels:
    values = list(enumerate(train.label))
    if problem_type == "multi_label_classification":
        values = [(index, value) for index, cell in values for value in _members(cell, train, index)]
    kinds = ["whole number" if to_class_id(value) is not None else label_kind(value) for _, value in values]
    _expect_one_kind([(index, kind) for (index, _), kind in zip(values, kinds, strict=True)], train)
    if kinds[0] == "text":
        names = tuple(sorted({value for _, value in values}))
        return Labels(problem_type, names, numbers_are_ids=False, reason=reason)
    ids = sorted({found for _, value in values if (found := to_class_id(value)) is not None})
    if ids and ids == list(range(ids[0], ids[0] + len(ids))) and ids[0] > 0:
        named = ", ".join(f"{index}: ..." for index in ids[:3]) + ", ..." * (len(ids) > 3)
        raise JloraError(
            f"{train.source[0]}: expected class ids from 0; found {ids[0]} to {ids[-1]}. Name the classes in the order"
            f" of their ids with data.label_names={{{named}}}, or set task=regression if they are scores"
        )
    for index, value in values:
        if to_class_id(value) not in range(len(ids)):
            there = _some(ids) or "none"
            refuse_label(value, train, index, f"whole numbers from 0 without a gap (there are {there})", _ADVICE)
    return Labels(problem_type, tuple(f"LABEL_{i}" for i in range(len(ids))), reason=reason)


def _expect_one_kind(kinds: list[tuple[int, str]], train: Split) -> None:
    """Raises JloraError for the first row whose label is not of the most frequent kind."""
    if not kinds:
        raise JloraError(f"{train.source[0]}: no row has a label")
    expected = Counter(kind for _, kind in kinds if kind not in ("nothing", "something else")).most_common(1)
    for index, kind in kinds:
        if not expected or kind != expected[0][0]:
            refuse_kind(train, index, kind, expected[0][0] if expected else None, _ADVICE)


def _class_id(value: Any, labels: Labels, ids: dict[str, int], split: Split, index: int) -> int:
    if isinstance(value, str) and value in ids:
        return ids[value]
    found = to_class_id(value) if labels.numbers_are_ids else None
    if found is None or not 0 <= found < len(labels):
        expected = [f"a class id from 0 to {len(labels) - 1}"] * labels.numbers_are_ids
        if list(labels.names) != [f"LABEL_{i}" for i in range(len(labels))]:
            expected.append(f"one of {_some(labels.names)}")
        near = [class_name for class_name in labels.names if spelling(class_name) == spelling(str(value))]
        hint = f"{near[0]!r} differs from it only in case, spaces or Unicode form" if near else ""
        refuse_label(value, split, index, " or ".join(expected), hint)
    return found


def _several(cell: Any, labels: Labels, ids: dict[str, int], multi_hot: bool, split: Split, index: int) -> np.ndarray:
    """Returns float32 (k,): 1 for each class of the row."""
    if not multi_hot:
        row = np.zeros(len(labels), np.float32)
        row[[_class_id(value, labels, ids, split, index) for value in _members(cell, split, index)]] = 1.0
        return row
    if not (isinstance(cell, list) and len(cell) == len(labels) and all(is_yes(part) is not None for part in cell)):
        refuse_label(cell, split, index, f"a list of {len(labels)} numbers, 0 or 1 for each class")
    return np.array([is_yes(part) for part in cell], np.float32)


def _members(cell: Any, split: Split, index: int) -> list[Any]:
    if isinstance(cell, list):
        return cell
    if not isinstance(cell, str):
        refuse_label(cell, split, index, f"a list of labels, or text such as a{SEPARATOR}b in CSV and TSV")
    return _parts(cell)


def _some(values: Sequence[Any]) -> str:
    shown = ", ".join(str(value) for value in values[:10])
    return f"{shown} ... ({len(values)} in all)" if len(values) > 10 else shown
