"""The training loop: batches in, steps, evaluations, checkpoints and records out."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, SupportsFloat

import jax
import numpy as np
import orbax.checkpoint as ocp

from jlora import combine
from jlora.errors import JloraError
from train import checkpoint, metrics
from train.batches import Batch, make_batch, plan_epoch
from train.checkpoint import Best
from train.config import Config
from train.evaluate import logits_of, scores
from train.prepare import Prepared, steps_of
from train.progress import Progress
from train.record import Recorder
from train.step import Rows, State

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Loop:
    """What stays the same from step to step.

    Attributes:
      base, frozen: the trees that are not trained. splits, buckets: the data and the batches' lengths.
      train_step, eval_step: compiled functions of `train.step`. rate: the learning rate of a step.
      key: root of the dropout keys. metric: what chooses the best step.
    """

    config: Config
    problem_type: str
    base: Any
    frozen: Any
    splits: dict[str, Prepared]
    buckets: tuple[int, ...]
    train_step: Callable
    eval_step: Callable
    rate: Callable
    key: jax.Array
    metric: str


def run(loop: Loop, state: State, best: Best, manager: ocp.CheckpointManager, recorder: Recorder) -> tuple[Best, float]:
    """Trains from `state` to the last step, or until nothing gets better.

    Returns:
      (the best evaluation, examples per second while training).

    Raises:
      JloraError: the loss, its gradient or an evaluation is NaN or infinite; the newest checkpoint is from before it.
    """
    train = loop.config.train
    per_epoch, steps = steps_of(loop.config, len(loop.splits["train"].tokens))
    evaluate_every = train.eval_every or per_epoch
    checkpoint_every = train.checkpoint_every or evaluate_every
    start = int(state.step)
    saved, losses = start, list[float]()  # losses since the last record
    with Progress(steps, start, train.log_every) as progress:
        for step, batch in enumerate(batches(loop, start, steps), start + 1):
            if _is_exhausted(loop, best):
                logger.info("stopped early: %d evaluations without a better %s", best.stale, loop.metric)
                break
            state, values = loop.train_step(state, loop.frozen, loop.base, to_rows(batch), loop.key)
            _require_finite(values, step, saved)
            progress.update(values["loss"], int(batch.weights.sum()), float(loop.rate(step - 1)))
            losses.append(float(values["loss"]))
            if step % train.log_every == 0 or step == steps:
                _log_step(recorder, loop, step, {**values, "loss": np.mean(losses)}, progress)
                losses.clear()
            with progress.paused():
                if step % evaluate_every == 0 or step == steps:
                    best = _evaluate(loop, state, best, step, saved, recorder)
                if step % checkpoint_every == 0 or step == steps:
                    checkpoint.save(manager, state, best)
                    saved = step
        return best, progress.examples_per_second


def batches(loop: Loop, start: int, steps: int) -> Iterator[Batch]:
    """The batches of steps `start` to `steps`: a pure function of the seed and the step, whatever came before."""
    split, train = loop.splits["train"], loop.config.train
    size = train.batch_size * train.gradient_accumulation_steps
    per_epoch, _ = steps_of(loop.config, len(split.tokens))
    for epoch in range(start // per_epoch, math.ceil(steps / per_epoch)):
        plan = plan_epoch(split.tokens.lengths, loop.buckets, size, loop.config.seed, epoch)
        first = max(0, start - epoch * per_epoch)
        for planned in plan[first : steps - epoch * per_epoch]:
            yield make_batch(split.tokens, split.labels, planned, size, split.pad_id)


def to_rows(batch: Batch) -> Rows:
    """The batch's arrays as the train step takes them."""
    return Rows(batch.inputs, batch.labels, batch.weights)


def _is_exhausted(loop: Loop, best: Best) -> bool:
    patience = loop.config.train.early_stopping_patience
    return patience is not None and best.stale >= patience


def _require_finite(values: Mapping[str, SupportsFloat], step: int, saved: int) -> None:
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
        "epoch": step / steps_of(loop.config, len(loop.splits["train"].tokens))[0],
        "examples_per_second": progress.examples_per_second,
    }
    recorder.log(step, numbers, "train")


def _evaluate(loop: Loop, state: State, best: Best, step: int, saved: int, recorder: Recorder) -> Best:
    split = loop.splits["validation"]
    adapter = combine(state.trainable, loop.frozen)
    logits = logits_of(loop.eval_step, adapter, loop.base, split, loop.buckets, loop.config.train.eval_batch_size)
    _require_finite({"largest validation logit": np.max(np.abs(logits))}, step, saved)
    found = scores(loop.problem_type, logits, split.labels)
    recorder.log(step, found, "validation")
    shown = "  ".join(f"{name} {value:.4f}" for name, value in found.items())
    better = metrics.is_better(loop.metric, found[loop.metric], best.value)
    logger.info("step %d  validation: %s%s", step, shown, "  (best so far)" if better else "")
    if better:
        return Best(checkpoint.to_host(state.trainable), found[loop.metric], step, 0)
    return dataclasses.replace(best, stale=best.stale + 1)
