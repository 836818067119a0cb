"""Computes the score of always predicting the same, with which a trained classifier is compared."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from train.classify import metrics
from train.classify.data.labels import Labels, is_labelled

_SURE = 20.0
"""The logit of a predicted class."""


def constant_logits(problem_type: str, labels: np.ndarray, classes: int) -> np.ndarray:
    """Returns logits, float32 (L,), of the best constant prediction: majority class or labels, or the mean.

    For classes the logit is 20 for what is predicted and -20 for the rest; of classes that are equally frequent the
    first is predicted, and of several labels those that more than half of the rows have. For a regression L is 1, the
    mean.

        ("single_label_classification", [1, 1, 0, -1], 3) -> [-20, 20, -20]

    Args:
      labels: the result of `encode_labels`, (n,) or (n, L); rows without a label (-1 or NaN) do not count, and one or
        more has one.
      classes: L, for a single label.
    """
    known = labels[is_labelled(labels)]
    if problem_type == "regression":
        return np.array([known.mean()], np.float32)
    if problem_type == "multi_label_classification":
        return np.where(known.mean(0) > 0.5, _SURE, -_SURE).astype(np.float32)
    return np.where(np.arange(classes) == np.bincount(known, minlength=classes).argmax(), _SURE, -_SURE).astype(
        np.float32
    )


def no_better(labels: Labels, validation: np.ndarray, found: Mapping[str, float], length: str) -> str:
    """Returns a warning if the classifier is no better on validation rows than a constant prediction; else "".

    The constant prediction is that of `constant_logits` for the same rows. A regression is better if its mse is lower,
    a multi-label classifier if its f1_micro is higher. Single labels are better if the accuracy is more than the
    constant's p + sqrt(p (1 - p) / n), one standard error for n rows, or if the correlation mcc is more than 2 /
    sqrt(n).

    Args:
      labels: the task and its classes.
      validation: the encoded labels of the split, as `encode_labels` returns them; rows without a label do not count,
        and the result is "" if no row has one.
      found: its metrics, {name: value}: read are mse (regression), f1_micro (multi-label), or accuracy and mcc.
      length: the config key that says how long to train, for the message.
    """
    kind, known = labels.problem_type, validation[is_labelled(validation)]
    if not len(known):
        return ""
    constant = constant_logits(kind, known, len(labels))
    there = metrics.compute(kind, np.tile(constant, (len(known), 1)), known)
    if kind == "regression":
        name, answer = "mse", "the mean of these rows"
        is_better = found[name] < there[name]
    elif kind == "multi_label_classification":
        name, answer = "f1_micro", "the labels that most of these rows have"
        is_better = found[name] > there[name]
    else:
        name, answer = "accuracy", f"the majority class {labels.names[int(constant.argmax())]!r}"
        noise = math.sqrt(there[name] * (1 - there[name]) / len(known))
        is_better = found[name] > there[name] + noise or found["mcc"] > 2 / math.sqrt(len(known))
    if is_better:
        return ""
    return (
        f"validation: {name} {found[name]:.4f} on {len(known):,} rows is no better than {there[name]:.4f}, the score"
        f" of always predicting {answer}. Try another train.learning_rate or a larger {length}, or check the data"
    )
