"""Describes the labels of a split in log lines before training."""

from __future__ import annotations

import numpy as np

from jlora.printable import counted
from train.classify.data.label_values import spelling
from train.classify.data.labels import Labels, is_labelled

_SHOWN = 20
"""How many classes are named in the log."""


def describe_labels(labels: Labels, encoded: np.ndarray, name: str) -> str:
    """Returns a line about the labels of a split: the task, the classes and how many rows each has.

        train: 3 rows, single_label_classification, because REASON (task=... overrides this), 2 classes: bad 1, good 2
        test: 3 rows, regression, scores: 1 to 2.5, mean 1.75; 1 without a label

    At most 20 classes are named, then ` and N more`. For several labels the end is `; N with none of them`.

    Args:
      labels: the task, the classes and the `reason` for the task.
      encoded: the result of `encode_labels`, at least one row; rows without a label are counted apart.
      name: of the split; only for "train" the line has `labels.reason`, if that is not empty.
    """
    known = encoded[is_labelled(encoded)]
    unlabelled = f"; {len(encoded) - len(known):,} without a label" * (len(known) < len(encoded))
    seen = f", because {labels.reason} (task=... overrides this)" if name == "train" and labels.reason else ""
    head = f"{name}: {counted(len(encoded), 'row')}, {labels.problem_type}{seen}"
    if labels.problem_type == "regression":
        scores = f"{known.min():g} to {known.max():g}, mean {known.mean():.4g}" if len(known) else "none"
        return f"{head}, scores: {scores}{unlabelled}"
    if labels.problem_type == "single_label_classification":
        counts = np.bincount(known, minlength=len(labels))
    else:
        counts = known.sum(axis=0).astype(int)
        unlabelled += f"; {(known.sum(axis=1) == 0).sum():,} with none of them"
    by_class = [f"{class_name} {count:,}" for class_name, count in zip(labels.names, counts, strict=True)]
    shown = ", ".join(by_class[:_SHOWN])
    more = f" and {len(labels) - _SHOWN:,} more" * (len(labels) > _SHOWN)
    return f"{head}, {counted(len(labels), 'class')}: {shown}{more}{unlabelled}"


def near_equal(labels: Labels) -> list[str]:
    """Returns a line for each group of classes whose names differ only in case, spaces or Unicode form.

    The line begins with the names, quoted; a group has two or more. [] if there is none.
    """
    groups: dict[str, list[str]] = {}
    for class_name in labels.names:
        groups.setdefault(spelling(class_name), []).append(class_name)
    return [
        f"{', '.join(map(repr, group))} differ only in case, spaces or Unicode form, but are separate classes."
        " data.label_names={value: name, ...} gives several values one name"
        for group in groups.values()
        if len(group) > 1
    ]
