"""Evaluates a run's splits: batches go through the task's forward pass, and the task computes metrics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from train.data.bucketing import PlannedBatch, first_of_each_length, plan_evaluation
from train.devices import placement
from train.loop.assemble import Evaluation
from train.loop.evaluation import never, run_through
from train.task.protocol import EndedRun, Run


def evaluate(
    run: Run, eval_step: Callable, adapter: Any, base: Any, split: str, check: Callable[[], None] = never
) -> dict[str, float]:
    """Computes the metrics of a split: the result of the task's `metrics`, {metric: value}.

    Args:
      run: read are its `task`, `opened`, `lengths`, `mesh` and `config.train.eval_batch_size`, the rows of a batch.
      eval_step: eval_step(adapter, base, batch), the run's or another model's with its `base`; returns what the task's
        `forward` does.
      adapter: None evaluates only the base.
      split: a key of `run.opened.rows`.
      check: called before each batch; an exception that it raises ends the evaluation.
    """
    size, lengths = run.config.train.eval_batch_size, run.opened.rows[split].lengths
    make = partial(run.task.batch, run.opened, split)
    found = run_through(partial(eval_step, adapter, base), lengths, run.lengths, size, make, run.mesh, check)
    return run.task.metrics(run.opened, split, found)


def evaluate_best(run: EndedRun, split: str) -> dict[str, float]:
    """Returns the metrics of the best step on a split, {metric: value}.

    Those of validation are a copy of `run.best.metrics`, unless that is empty; other splits are evaluated with
    `run.eval_step`, `run.adapter` and `run.adapted.base`.
    """
    if split == "validation" and run.best.metrics:
        return dict(run.best.metrics)
    return evaluate(run, run.eval_step, run.adapter, run.adapted.base, split)


def validation(run: Run) -> Evaluation:
    """Makes the evaluation of the validation split for the loop; its programs are compiled ahead.

    Its `run(adapter, check)` is `evaluate` with the run's eval_step and base, its `metric` is `run.opened.metric`,
    `batches` and `places` count the batches of `plan_evaluation` and their padded tokens, and `prepare(adapter)` calls
    `run.eval_step.prepare` for the first batch of each length.

    Args:
      run: read are also its `lengths`, `mesh` and `config.train.eval_batch_size`, which is rounded up for the mesh.
    """
    size = placement.round_up(run.mesh, run.config.train.eval_batch_size)
    plan = plan_evaluation(run.opened.rows["validation"].lengths, run.lengths, size)

    def prepare(adapter: Any) -> None:
        for planned in first_of_each_length(plan):
            name = f"evaluation, {planned.length} tokens a row"
            run.eval_step.prepare(name, adapter, run.adapted.base, place_batch(run, "validation", size, planned))

    return Evaluation(
        run=lambda adapter, check: evaluate(run, run.eval_step, adapter, run.adapted.base, "validation", check),
        metric=run.opened.metric,
        prepare=prepare,
        places=size * sum(planned.length for planned in plan),
        batches=len(plan),
    )


def place_batch(run: Run, split: str, size: int, planned: PlannedBatch) -> Any:
    """Makes a planned batch on the run's devices: the tree of the task's `batch`, of arrays (size, ...)."""
    return placement.put_batch(run.mesh, size, partial(run.task.batch, run.opened, split, planned, size))
