"""Logits, loss and metrics of a whole split of a classifier's data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jlora import adapt
from train.classify import metrics
from train.classify.data.batches import make_batch
from train.classify.data.labels import Labels, is_labelled
from train.classify.loss import row_losses
from train.classify.model import Prepared
from train.data.bucketing import PlannedBatch, first_of_each_length, plan_evaluation
from train.devices import placement
from train.devices.compilation import jit
from train.devices.programs import CompiledAhead
from train.loop.assemble import Evaluation
from train.loop.evaluation import never, results


@dataclasses.dataclass(frozen=True)
class Task:
    """What a classifier learns, and how it is looked at.

    Attributes:
      labels: classes and problem type. splits, buckets: the data and the batches' lengths.
      eval_step: as `make_eval_step` gives it. batch_size: rows a batch in evaluation.
      mesh: what the weights lie on; None is one device.
    """

    labels: Labels
    splits: dict[str, Prepared]
    buckets: tuple[int, ...]
    eval_step: Callable
    batch_size: int
    mesh: Mesh | None = None


def evaluated(task: Task, adapter: Any, base: Any, split: str, check: Callable[[], None] = never) -> dict[str, float]:
    """The metrics and the mean loss of a split's labelled rows; the loss alone, NaN, of a model that diverged.

    `check` is called before each batch; what it raises ends the evaluation.
    """
    rows, size = task.splits[split], task.batch_size
    logits = logits_of(task.eval_step, adapter, base, rows, task.buckets, size, task.mesh, check)
    if not np.isfinite(logits).all():
        return {"loss": math.nan}
    return scores(task.labels.problem_type, logits, task.splits[split].labels)


def make_eval_step(apply: Callable, mesh: Mesh | None = None) -> Callable:
    """eval_step(adapter, base, inputs) -> logits float32 (B, L); no dropout. `adapter` may be None."""
    adapted = adapt(apply)

    @jit
    def eval_step(adapter: Any, base: Any, inputs: dict[str, Any]) -> jax.Array:
        return adapted(base, adapter, inputs)

    return placement.eval_step_on(mesh, eval_step)


def validation(task: Task, eval_step: CompiledAhead, base: Any, metric: str) -> Evaluation:
    """The validation split's evaluation as the loop takes it; `eval_step` is the task's, `metric` chooses the best."""
    rows, size = task.splits["validation"], placement.rounded_up(task.mesh, task.batch_size)
    plan = plan_evaluation(rows.tokens.lengths, task.buckets, size)

    def prepare(adapter: Any) -> None:
        for planned in first_of_each_length(plan):
            make = partial(make_batch, rows.tokens, rows.labels, planned, size, rows.pad_id)
            inputs = placement.put_batch(task.mesh, size, make).inputs
            eval_step.prepare(f"evaluation, {planned.length} tokens a row", adapter, base, inputs)

    return Evaluation(
        run=lambda adapter, check: evaluated(task, adapter, base, "validation", check),
        metric=metric,
        prepare=prepare,
        places=size * sum(planned.length for planned in plan),
        batches=len(plan),
    )


def logits_of(
    eval_step: Callable,
    adapter: Any,
    base: Any,
    split: Prepared,
    buckets: tuple[int, ...],
    batch_size: int,
    mesh: Mesh | None = None,
    check: Callable[[], None] = never,
    first: int | None = None,
) -> np.ndarray:
    """Logits float32 (n, L) in the split's own order; batches of few fixed shapes, the shortest rows first.

    Of several processes all get all of them. `check` is called before each batch. Only the split's `first` rows are
    evaluated, if given.
    """
    size = placement.rounded_up(mesh, batch_size)
    plan = plan_evaluation(split.tokens.lengths[:first], buckets, size)

    def step(planned: PlannedBatch) -> jax.Array:
        make = partial(make_batch, split.tokens, split.labels, planned, size, split.pad_id)
        return eval_step(adapter, base, placement.put_batch(mesh, size, make).inputs)

    found = results(step, plan, check)
    logits = np.concatenate([part[: len(planned.rows)] for planned, part in zip(plan, found, strict=True)])
    ordered = np.empty_like(logits)
    ordered[np.concatenate([planned.rows for planned in plan])] = logits
    return ordered


def scores(problem_type: str, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The task's metrics and the mean loss of the labelled rows; empty where no row is labelled."""
    known = is_labelled(labels)
    if not known.any():
        return {}
    loss = float(np.mean(np.asarray(row_losses(problem_type, logits[known], labels[known]))))
    return {**metrics.compute(problem_type, logits[known], labels[known]), "loss": loss}
