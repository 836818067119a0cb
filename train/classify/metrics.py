"""Computes the metrics of each problem type of a classifier with scikit-learn and SciPy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jlora.errors import JloraError, nearest

_PRIMARY = {
    "single_label_classification": "accuracy",
    "multi_label_classification": "f1_micro",
    "regression": "pearson",
}


def metric_names(problem_type: str, num_labels: int) -> list[str]:
    """Returns the names of the metrics that `compute` returns for a task, the primary one first.

    `single_label_classification` has accuracy, f1 (f1_macro unless `num_labels` is 2) and mcc;
    `multi_label_classification` f1_micro, f1_macro and accuracy; `regression` pearson, spearman, mse and mae.

    Raises:
      JloraError: another problem type.
    """
    if problem_type == "single_label_classification":
        return ["accuracy", "f1" if num_labels == 2 else "f1_macro", "mcc"]
    if problem_type == "multi_label_classification":
        return ["f1_micro", "f1_macro", "accuracy"]
    if problem_type == "regression":
        return ["pearson", "spearman", "mse", "mae"]
    raise _unknown("problem type", problem_type, list(_PRIMARY))


def primary(problem_type: str) -> str:
    """Returns the metric that chooses the best checkpoint if the config names none.

    It is `accuracy` for single_label_classification, `f1_micro` for multi_label_classification, `pearson` for
    regression.

    Raises:
      JloraError: another problem type.
    """
    if problem_type not in _PRIMARY:
        raise _unknown("problem type", problem_type, list(_PRIMARY))
    return _PRIMARY[problem_type]


def require_metric(metric: str, problem_type: str, num_labels: int) -> None:
    """Raises JloraError, with the nearest name, unless the task has `metric`; every task has `loss`.

    The others are those of `metric_names`, which depend on `num_labels`.
    """
    known = [*metric_names(problem_type, num_labels), "loss"]
    if metric not in known:
        raise _unknown("train.metric", metric, known)


def compute(problem_type: str, logits: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Computes the task's metrics, as `metric_names` lists them.

    A metric that is undefined for the data is 0.0: F1 if a class is neither present nor predicted, MCC and correlations
    if predictions or labels are constant (or there is one row). With several classes, those that are neither present
    nor predicted are left out of the macro average. The accuracy of several labels is the share of rows in which all
    are right.

    Args:
      logits: (n, k) float.
      labels: (n,) int in 0..k-1 (single label), (n, k) of 0 and 1 (multi-label), or (n,) float with k = 1 (regression).

    Returns:
      {name: float}. Predicted is the largest logit, or for multi-label each that is above 0.

    Raises:
      JloraError: an unknown problem type, no rows, shapes that do not fit, labels out of range, or logits that are not
        finite.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    _check_arrays(problem_type, logits, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each case they warn of is the documented 0.0
        if problem_type == "single_label_classification":
            return _single_label(logits.argmax(-1), labels, logits.shape[1])
        if problem_type == "multi_label_classification":
            return _multi_label((logits > 0).astype(np.int64), labels.astype(np.int64))
        return _regression(logits[:, 0].astype(np.float64), labels.astype(np.float64))


def probabilities(problem_type: str, logits: ArrayLike) -> NDArray[np.floating]:
    """Converts logits (n, k) to probabilities: softmax, or sigmoid if multi-label; a regression's do not change.

    Raises:
      JloraError: another problem type than those of `metric_names`.
    """
    from scipy.special import expit, softmax

    logits = np.asarray(logits)
    if problem_type == "single_label_classification":
        return softmax(logits, axis=-1)
    if problem_type == "multi_label_classification":
        return expit(logits)
    if problem_type == "regression":
        return logits
    raise _unknown("problem type", problem_type, list(_PRIMARY))


def _single_label(predicted: NDArray[Any], labels: NDArray[Any], num_labels: int) -> dict[str, float]:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef  # seconds: not before an evaluation

    average, name = ("binary", "f1") if num_labels == 2 else ("macro", "f1_macro")
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        name: float(f1_score(labels, predicted, average=average, zero_division=0.0)),
        "mcc": float(matthews_corrcoef(labels, predicted)),
    }


def _multi_label(predicted: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    from sklearn.metrics import f1_score

    return {
        "f1_micro": float(f1_score(labels, predicted, average="micro", zero_division=0.0)),
        "f1_macro": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
        "accuracy": float((predicted == labels).all(-1).mean()),
    }


def _regression(predicted: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, mean_squared_error

    return {
        "pearson": _correlation(pearsonr, predicted, labels),
        "spearman": _correlation(spearmanr, predicted, labels),
        "mse": float(mean_squared_error(labels, predicted)),
        "mae": float(mean_absolute_error(labels, predicted)),
    }


def _correlation(function: Callable[..., Any], predicted: NDArray[Any], labels: NDArray[Any]) -> float:
    if len(labels) < 2:
        return 0.0
    value = float(function(predicted, labels).statistic)
    return 0.0 if math.isnan(value) else value


def _check_arrays(problem_type: str, logits: NDArray[Any], labels: NDArray[Any]) -> None:
    primary(problem_type)
    multi = problem_type == "multi_label_classification"
    if logits.ndim != 2 or len(logits) == 0:
        raise JloraError(
            f"metrics: expected logits of shape (rows, labels) with at least one row, found {logits.shape}"
        )
    expected = logits.shape if multi else logits.shape[:1]
    if labels.shape != expected:
        raise JloraError(f"metrics: logits {logits.shape} need labels of shape {expected}, found {labels.shape}")
    if problem_type == "regression":
        if logits.shape[1] != 1:
            raise JloraError(f"metrics: regression has one output, found logits of shape {logits.shape}")
    else:
        upper = 1 if multi else logits.shape[1] - 1
        outside = np.argwhere((labels < 0) | (labels > upper))
        if len(outside):
            row = int(outside[0, 0])
            raise JloraError(f"metrics: row {row}: label {labels[row].tolist()} is outside 0..{upper}")
    if not np.isfinite(logits).all():
        row = int(np.argwhere(~np.isfinite(logits))[0, 0])
        raise JloraError(f"metrics: row {row}: logits are not finite; the model diverged (lower train.learning_rate)")


def _unknown(what: str, found: str, known: list[str]) -> JloraError:
    return JloraError(f"{what}: expected one of {', '.join(known)}, found {found!r}{nearest(found, known)}")
