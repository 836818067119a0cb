"""Loss, perplexity and token accuracy of a whole split."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from jax.sharding import Mesh

from train.data.bucketing import PlannedBatch, first_of_each_length, plan_evaluation
from train.devices import placement
from train.devices.programs import CompiledAhead
from train.lm.data.batches import Batch, make_batch
from train.lm.data.load import Data
from train.lm.loss import Sums
from train.loop.assemble import Evaluation
from train.loop.evaluation import never, results


@dataclasses.dataclass(frozen=True)
class Task:
    """What a model learns, and how it is looked at.

    Attributes:
      data: the splits. lengths: the padded lengths of batches. pad_id: what fills rows up.
      eval_step: as `train.lm.objective.make_eval_step` gives it. batch_size: rows a batch in evaluation.
      mesh: what the weights lie on; None is one device.
    """

    data: Data
    lengths: tuple[int, ...]
    eval_step: Callable[[Any, Any, Batch], Sums]
    batch_size: int
    pad_id: int
    mesh: Mesh | None = None


def validation(task: Task, eval_step: CompiledAhead, base: Any) -> Evaluation:
    """The validation split's evaluation as the loop takes it; `eval_step` is the task's."""
    rows, size = task.data.rows["validation"], placement.rounded_up(task.mesh, task.batch_size)
    plan = plan_evaluation(rows.lengths, task.lengths, size)

    def prepare(adapter: Any) -> None:
        for planned in first_of_each_length(plan):
            batch = placement.put_batch(task.mesh, size, partial(make_batch, rows, planned, size, task.pad_id))
            eval_step.prepare(f"evaluation, {planned.length} tokens a row", adapter, base, batch)

    return Evaluation(
        run=lambda adapter, check: evaluated(task, adapter, base, "validation", check),
        metric="loss",
        prepare=prepare,
        places=size * sum(planned.length for planned in plan),
        batches=len(plan),
    )


def evaluated(task: Task, adapter: Any, base: Any, split: str, check: Callable[[], None] = never) -> dict[str, float]:
    """{"loss": mean over the split's learnt tokens, "perplexity": its exponential, "token_accuracy": the share of them
    that the model thinks the likeliest}. `check` is called before each batch; what it raises ends the evaluation.
    """
    rows, size = task.data.rows[split], placement.rounded_up(task.mesh, task.batch_size)

    def step(planned: PlannedBatch) -> Sums:
        batch = placement.put_batch(task.mesh, size, partial(make_batch, rows, planned, size, task.pad_id))
        return task.eval_step(adapter, base, batch)

    sums = list(results(step, plan_evaluation(rows.lengths, task.lengths, size), check))
    losses, right = np.array(sums, np.float64).sum(0)
    tokens = int(rows.learn.sum())
    loss = float(losses / tokens)
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),  # a float holds no more
        "token_accuracy": float(right / tokens),
    }
