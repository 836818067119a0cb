"""Logits, loss and metrics of a whole split of a classifier's data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jlora import adapt
from train.classify import metrics
from train.classify.data.batches import Batch, make_batch
from train.classify.data.labels import is_labelled
from train.classify.loss import row_losses
from train.classify.model import Prepared
from train.loop.evaluation import never, run_through
from train.task.protocol import Found


def logits_forward(apply: Callable) -> Callable[[Any, Any, Batch], jax.Array]:
    """forward(adapter, base, batch) -> logits float32 (B, L); no dropout. `adapter` may be None."""
    adapted = adapt(apply)
    return lambda adapter, base, batch: adapted(base, adapter, batch.inputs)


def logits_of(
    step: Callable[[Batch], Any],
    split: Prepared,
    buckets: tuple[int, ...],
    batch_size: int,
    mesh: Mesh | None = None,
    check: Callable[[], None] = never,
    first: int | None = None,
) -> np.ndarray:
    """Logits float32 (n, L) in the split's own order; batches of few fixed shapes, the shortest rows first.

    Of several processes all get all of them.

    Args:
      step: step(batch) -> logits. check: called before each batch. first: only so many rows are evaluated.
    """

    def make(planned: Any, size: int, places: Any) -> Batch:
        return make_batch(split.tokens, split.labels, planned, size, split.pad_id, places)

    return in_order(run_through(step, split.lengths[:first], buckets, batch_size, make, mesh, check))


def in_order(found: Found) -> np.ndarray:
    """The logits of all batches in the order of the split's rows."""
    logits = np.concatenate([part[: len(planned.rows)] for planned, part in found])
    ordered = np.empty_like(logits)
    ordered[np.concatenate([planned.rows for planned, _ in found])] = logits
    return ordered


def scores(problem_type: str, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The task's metrics and the mean loss of the labelled rows; empty where no row is labelled."""
    known = is_labelled(labels)
    if not known.any():
        return {}
    loss = float(np.mean(np.asarray(row_losses(problem_type, logits[known], labels[known]))))
    return {**metrics.compute(problem_type, logits[known], labels[known]), "loss": loss}
