"""Logits, loss and metrics of a whole split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from train import metrics
from train.batches import make_batch, plan_evaluation
from train.labels import is_labelled
from train.loss import row_losses
from train.prepare import Prepared


def logits_of(
    eval_step: Callable, adapter: Any, base: Any, split: Prepared, buckets: tuple[int, ...], batch_size: int
) -> np.ndarray:
    """Logits float32 (n, L) in the split's own order; batches of few fixed shapes, the shortest rows first."""
    results: list[tuple[np.ndarray, Any]] = []
    for planned in plan_evaluation(split.tokens.lengths, buckets, batch_size):
        batch = make_batch(split.tokens, split.labels, planned, batch_size, split.pad_id)
        results.append((planned.rows, eval_step(adapter, base, batch.inputs)))
    logits = np.concatenate([np.asarray(result)[: len(rows)] for rows, result in results])
    ordered = np.empty_like(logits)
    ordered[np.concatenate([rows for rows, _ in results])] = logits
    return ordered


def scores(problem_type: str, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The task's metrics and the mean loss of the labelled rows; empty where no row is labelled."""
    known = is_labelled(labels)
    if not known.any():
        return {}
    loss = float(np.mean(np.asarray(row_losses(problem_type, logits[known], labels[known]))))
    return {**metrics.compute(problem_type, logits[known], labels[known]), "loss": loss}
