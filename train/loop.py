"""The training loop: batches in, steps, evaluations, checkpoints and records out."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, SupportsFloat

import jax
import numpy as np
import orbax.checkpoint as ocp

from jlora import combine
from jlora.errors import JloraError
from train import checkpoint, metrics
from train.checkpoint import Best
from train.progress import Progress
from train.record import Recorder
from train.sections import TrainSection
from train.step import State

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Loop:
    """What stays the same from step to step.

    Attributes:
      train: the config's section. steps, per_epoch: optimizer steps of the run, and of an epoch.
      base, frozen: the trees that are not trained.
      plan: plan(epoch) gives what each of the epoch's steps trains on, a pure function of its argument.
      batch: batch(planned) makes the arrays of one step, as `train_step` takes them.
      count: count(batch) is how many of `unit` (examples, tokens) a step gets through.
      train_step: a compiled function of `train.step`.
      evaluate: evaluate(adapter) gives {metric: value} of the validation split, the loss among them.
      metric: what chooses the best step. rate: the learning rate of a step. key: root of the dropout keys.
    """

    train: TrainSection
    steps: int
    per_epoch: int
    base: Any
    frozen: Any
    plan: Callable[[int], Sequence[Any]]
    batch: Callable[[Any], Any]
    count: Callable[[Any], int]
    unit: str
    train_step: Callable
    evaluate: Callable[[Any], dict[str, float]]
    metric: str
    rate: Callable
    key: jax.Array


def run(loop: Loop, state: State, best: Best, manager: ocp.CheckpointManager, recorder: Recorder) -> tuple[Best, float]:
    """Trains from `state` to the last step, or until nothing gets better.

    Returns:
      (the best evaluation, examples or tokens per second while training).

    Raises:
      JloraError: the loss, its gradient or an evaluation is NaN or infinite; the newest checkpoint is from before it.
    """
    train, start = loop.train, int(state.step)
    evaluate_every = train.eval_every or loop.per_epoch
    checkpoint_every = train.checkpoint_every or evaluate_every
    saved, losses = start, list[Any]()  # losses since the last record
    unread = deque[tuple[int, dict]]()  # values that were not looked at: one step may run while the next is made
    with Progress(loop.steps, start, train.log_every, unit=loop.unit) as progress:
        for step, batch in enumerate(batches(loop, start), start + 1):
            if _is_exhausted(loop, best):
                logger.info("stopped early: %d evaluations without a better %s", best.stale, loop.metric)
                break
            state, values = loop.train_step(state, loop.frozen, loop.base, batch, loop.key)
            unread.append((step, values))
            log, evaluate, save = (
                step % every == 0 or step == loop.steps for every in (train.log_every, evaluate_every, checkpoint_every)
            )
            while len(unread) > (0 if log or evaluate or save else 1):
                _require_finite(*unread.popleft(), saved)
            progress.update(values["loss"], loop.count(batch), float(loop.rate(step - 1)))
            losses.append(values["loss"])
            if log:
                _log_step(recorder, loop, step, {**values, "loss": np.mean([float(loss) for loss in losses])}, progress)
                losses.clear()
            with progress.paused():
                if evaluate:
                    best = _evaluate(loop, state, best, step, saved, recorder)
                if save:
                    checkpoint.save(manager, state, best)
                    saved = step
        return best, progress.per_second


def batches(loop: Loop, start: int) -> Iterator[Any]:
    """The batches of the steps from `start` on: a pure function of the plan and the step, whatever came before."""
    for epoch in range(start // loop.per_epoch, math.ceil(loop.steps / loop.per_epoch)):
        begin = epoch * loop.per_epoch
        for planned in loop.plan(epoch)[max(0, start - begin) : loop.steps - begin]:
            yield loop.batch(planned)


def _is_exhausted(loop: Loop, best: Best) -> bool:
    patience = loop.train.early_stopping_patience
    return patience is not None and best.stale >= patience


def _require_finite(step: int, values: Mapping[str, SupportsFloat], saved: int) -> None:
    for name, value in values.items():
        if not math.isfinite(float(value)):
            kept = f"the checkpoint of step {saved} is kept" if saved else "no checkpoint was written yet"
            raise JloraError(
                f"step {step}: expected a finite {name}, found {float(value)}; stopped, {kept}."
                " Try a smaller train.learning_rate, or look at the data."
            )


def _log_step(recorder: Recorder, loop: Loop, step: int, values: dict[str, Any], progress: Progress) -> None:
    numbers = {
        "loss": values["loss"],
        "grad_norm": values["grad_norm"],
        "learning_rate": loop.rate(step - 1),
        "epoch": step / loop.per_epoch,
        f"{loop.unit}_per_second": progress.per_second,
    }
    recorder.log(step, numbers, "train")


def _evaluate(loop: Loop, state: State, best: Best, step: int, saved: int, recorder: Recorder) -> Best:
    found = loop.evaluate(combine(state.trainable, loop.frozen))
    _require_finite(step, {"validation loss": found["loss"]}, saved)
    recorder.log(step, found, "validation")
    shown = "  ".join(f"{name} {value:.4f}" for name, value in found.items())
    better = metrics.is_better(loop.metric, found[loop.metric], best.value)
    logger.info("step %d  validation: %s%s", step, shown, "  (best so far)" if better else "")
    if better:
        return Best(checkpoint.to_host(state.trainable), found[loop.metric], step, 0)
    return dataclasses.replace(best, stale=best.stale + 1)
