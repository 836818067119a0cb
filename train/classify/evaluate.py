"""Computes logits, loss and metrics of a classifier on a split of its data."""

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
    """Makes forward(adapter, base, batch) -> logits, float32 (B, L), without dropout; `adapter` may be None.

    `apply` is called as apply(base, batch.inputs) and returns the logits: a linen module's.
    """
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
    """Computes logits, float32 (n, L), in the split's order, in batches of a few fixed shapes.

    The shortest rows are computed first. With several processes each gets the logits of all rows.

    Args:
      step: step(batch) -> logits (B, L).
      buckets: the padded lengths of batches, ascending; the last is at least the longest row.
      batch_size: rows of each batch; on a mesh it is rounded up to a multiple of data x fsdp.
      mesh: on which batches are put; None means one device.
      check: called before each batch; an exception that it raises ends the evaluation.
      first: evaluate only the first `first` rows; None means all.
    """

    def make(planned: Any, size: int, places: Any) -> Batch:
        return make_batch(split.tokens, split.labels, planned, size, split.pad_id, places)

    return in_order(run_through(step, split.lengths[:first], buckets, batch_size, make, mesh, check))


def in_order(found: Found) -> np.ndarray:
    """Concatenates the logits of all batches in the order of the split's rows: (n, L).

    Args:
      found: [(planned batch, logits (batch_size, L)), ...], at least one. Of each batch the first `len(planned.rows)`
        rows count, for the rows `planned.rows` of the split; the rest are fillers.
    """
    logits = np.concatenate([part[: len(planned.rows)] for planned, part in found])
    ordered = np.empty_like(logits)
    ordered[np.concatenate([planned.rows for planned, _ in found])] = logits
    return ordered


def scores(problem_type: str, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Computes the task's metrics and `loss`, the mean of the labelled rows; {} if no row is labelled.

    Args:
      problem_type: `single_label_classification`, `multi_label_classification` or `regression`; the metrics are those
        of `metrics.compute`, the loss that of `row_losses`.
      logits: float32 (n, L), in the order of `labels`.
      labels: the result of `encode_labels`; rows of -1 or NaN have no label and do not count.
    """
    known = is_labelled(labels)
    if not known.any():
        return {}
    loss = float(np.mean(np.asarray(row_losses(problem_type, logits[known], labels[known]))))
    return {**metrics.compute(problem_type, logits[known], labels[known]), "loss": loss}
