"""Raw labels to numbers: which task they mean, the class names, and errors for a label that does not fit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, cast

import numpy as np

from jlora.errors import JloraError
from train.classify.data import Split
from train.classify.label_values import label_kind, whole_number

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
_SEPARATOR = ";"
_ADVICE = "name the classes with data.label_names, or set task=regression where they are scores"


@dataclass(frozen=True)
class Labels:
    """The task and its classes: class i is called `names[i]`; a regression has the one name LABEL_0.

    `numbers_are_ids` is False where the names were collected from text labels: a number is an error there.
    """

    problem_type: ProblemType
    names: tuple[str, ...]
    numbers_are_ids: bool = True

    def __len__(self) -> int:
        """How many outputs the head has."""
        return len(self.names)

    def config_entries(self) -> dict[str, Any]:
        """What a Hugging Face config keeps of them: id2label, label2id, problem_type."""
        return {
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: index for index, name in enumerate(self.names)},
            "problem_type": self.problem_type,
        }


def labels_of_config(id2label: dict[Any, str], problem_type: str | None) -> Labels:
    """The Labels of a trained model's config; one output without a problem type is a regression."""
    names = tuple(name for _, name in sorted((int(index), name) for index, name in id2label.items()))
    guess = "regression" if len(names) == 1 else "single_label_classification"
    return Labels(cast(ProblemType, problem_type or guess), names)


def infer_labels(train: Split, task: str | None = None, names: tuple[str, ...] | None = None) -> Labels:
    """The task and class names of the training labels.

    `task` is the config's; without one lists are multi-label, mostly decimal numbers a regression, and
    everything else single-label. `names` come from `data.label_names` or the data set; without any, whole numbers are
    the ids 0 .. k-1 called LABEL_0 .., and text labels are sorted. Raises JloraError naming the first row
    that is wrong.
    """
    problem_type = cast(ProblemType, task or _infer_task(train, names))
    if problem_type == "regression":
        return Labels(problem_type, ("LABEL_0",))
    labels = Labels(problem_type, names) if names else _collect_labels(train, problem_type)
    if problem_type == "single_label_classification" and len(labels) < 2:
        raise JloraError(f"{train.source[0]}: expected two classes or more, found {labels.names[0]!r} alone")
    return labels


def encode(split: Split, labels: Labels, name: str) -> np.ndarray:
    """The labels of the split called `name` as numbers: int32 (n,) class ids, float32 (n,) scores of a
    regression, or float32 (n, k) of zeros and ones where a row has several labels (a list, or `a;b` in CSV
    and TSV).

    A -1 in the test split is an unlabelled row: id -1, or NaN where the result is float32. As -1 can be a
    score, a regression's test split is unlabelled only where every value is -1. Raises JloraError naming
    file and row.
    """
    unlabelled = [name == "test" and _is_minus_one(value) for value in split.label]
    if labels.problem_type == "regression" and not all(unlabelled):
        unlabelled = [False] * len(split)
    cells = enumerate(zip(split.label, unlabelled, strict=True))
    if labels.problem_type == "regression":
        scores = [math.nan if skip else _score(value, split, index) for index, (value, skip) in cells]
        return np.array(scores, np.float32)
    ids = {class_name: index for index, class_name in enumerate(labels.names)}
    if labels.problem_type == "single_label_classification":
        found = [-1 if skip else _class_id(value, labels, ids, split, index) for index, (value, skip) in cells]
        return np.array(found, np.int32)
    several = np.zeros((len(split), len(labels)), np.float32)
    for index, (cell, skip) in cells:
        members = [] if skip else _members(cell, split, index)
        several[index, [_class_id(value, labels, ids, split, index) for value in members]] = 1.0
    several[unlabelled] = np.nan
    return several


def is_labelled(encoded: np.ndarray) -> np.ndarray:
    """bool (n,): which rows of what `encode` returned have a label."""
    if encoded.dtype == np.int32:
        return encoded >= 0
    return ~np.isnan(encoded.reshape(len(encoded), -1)).any(axis=1)


def _infer_task(train: Split, names: tuple[str, ...] | None) -> ProblemType:
    kinds: list[str] = [label_kind(value) for value in train.label]
    if kinds.count("decimal number") > kinds.count("whole number"):
        kinds = ["decimal number" if kind == "whole number" else kind for kind in kinds]
    if names is None or "list" in kinds:
        _expect_one_kind(list(enumerate(kinds)), train)
    if "list" in kinds:
        return "multi_label_classification"
    decimal = names is None and "decimal number" in kinds
    return "regression" if decimal else "single_label_classification"


def _collect_labels(train: Split, problem_type: ProblemType) -> Labels:
    values = list(enumerate(train.label))
    if problem_type == "multi_label_classification":
        values = [(index, value) for index, cell in values for value in _members(cell, train, index)]
    kinds = ["whole number" if whole_number(value) is not None else label_kind(value) for _, value in values]
    _expect_one_kind([(index, kind) for (index, _), kind in zip(values, kinds, strict=True)], train)
    if kinds[0] == "text":
        names = tuple(sorted({value for _, value in values}))
        return Labels(problem_type, names, numbers_are_ids=False)
    ids = sorted({number for _, value in values if (number := whole_number(value)) is not None})
    for index, value in values:
        if whole_number(value) not in range(len(ids)):
            there = _some(ids) or "none"
            _refuse(value, train, index, f"whole numbers from 0 without a gap (there are {there}); {_ADVICE}")
    return Labels(problem_type, tuple(f"LABEL_{i}" for i in range(len(ids))))


def _expect_one_kind(kinds: list[tuple[int, str]], train: Split) -> None:
    """JloraError for the first row whose label is of another kind than most."""
    if not kinds:
        raise JloraError(f"{train.source[0]}: no row has a label")
    expected = Counter(kind for _, kind in kinds if kind != "nothing").most_common(1)
    for index, kind in kinds:
        if not expected or kind != expected[0][0]:
            most = f"a {expected[0][0]} as in most rows" if expected else "a label"
            _refuse(train.label[index], train, index, f"{most}; {_ADVICE}")


def _class_id(value: Any, labels: Labels, ids: dict[str, int], split: Split, index: int) -> int:
    if isinstance(value, str) and value in ids:
        return ids[value]
    number = whole_number(value) if labels.numbers_are_ids else None
    if number is None or not 0 <= number < len(labels):
        expected = [f"a number from 0 to {len(labels) - 1}"] * labels.numbers_are_ids
        if list(labels.names) != [f"LABEL_{i}" for i in range(len(labels))]:
            expected.append(f"one of {_some(labels.names)}")
        _refuse(value, split, index, " or ".join(expected))
    return number


def _score(value: Any, split: Split, index: int) -> float:
    number = float(value) if label_kind(value) in ("whole number", "decimal number") else math.nan
    if not math.isfinite(number):
        _refuse(value, split, index, "a finite number (task=regression)")
    return number


def _members(cell: Any, split: Split, index: int) -> list[Any]:
    if isinstance(cell, list):
        return cell
    if not isinstance(cell, str):
        _refuse(cell, split, index, f"a list of labels, or text such as a{_SEPARATOR}b in CSV and TSV")
    return [part.strip() for part in cell.split(_SEPARATOR) if part.strip()]


def _is_minus_one(value: Any) -> bool:
    return whole_number(value) == -1 or value == [-1]


def _some(values: Sequence[Any]) -> str:
    shown = ", ".join(str(value) for value in values[:10])
    return f"{shown} ... ({len(values)} in all)" if len(values) > 10 else shown


def _refuse(value: Any, split: Split, index: int, expected: str) -> NoReturn:
    found = "an empty label" if value is None or value == "" else f"the label {value!r}"
    hint = " (-1, an unlabelled row, is allowed in a test split only)" if _is_minus_one(value) else ""
    raise JloraError(f"{split.where(index)}: found {found}{hint}; expected {expected}")
