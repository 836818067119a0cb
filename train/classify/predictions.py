"""Writes predictions.csv: a classifier's predictions for the first validation rows."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from train.classify import metrics
from train.classify.data.labels import Labels
from train.classify.model import Prepared

ROWS_SHOWN = 50
"""How many rows of the validation split are in predictions.csv, and are predicted again by merged/."""


def write_predictions(path: Path, split: Prepared, logits: np.ndarray, labels: Labels) -> None:
    """Writes the first rows of a split, one for each row of `logits`: text, label, prediction, probabilities.

    The columns of the CSV are `text`, `text_pair` if the split has it, `label` (as in the data), `predicted`, and one
    with each class's name, with four decimals.

    Args:
      logits: float (rows, k), in the split's order; at most as many rows as the split.
    """
    shown = metrics.probabilities(labels.problem_type, logits)
    pair = ["text_pair"] if split.rows.text_pair is not None else []
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", *pair, "label", "predicted", *labels.names])
        for row in range(len(logits)):
            texts = [split.rows.text[row]] + ([split.rows.text_pair[row]] if split.rows.text_pair else [])
            numbers = [f"{value:.4f}" for value in shown[row]]
            writer.writerow([*texts, split.rows.label[row], format_prediction(labels, shown[row]), *numbers])


def format_prediction(labels: Labels, probabilities: np.ndarray) -> str:
    """Returns the predicted class of one row, the classes (`a;b`) if multi-label, or a regression's number.

    Args:
      labels: the task and its classes.
      probabilities: float (k,), a regression's score (1,). A single label is that of the largest; several labels are
        those above 0.5, "" if there are none; a number has four decimals.
    """
    if labels.problem_type == "regression":
        return f"{float(probabilities[0]):.4f}"
    if labels.problem_type == "multi_label_classification":
        return ";".join(name for name, value in zip(labels.names, probabilities, strict=True) if value > 0.5)
    return labels.names[int(np.argmax(probabilities))]
