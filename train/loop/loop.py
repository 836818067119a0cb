"""The training loop: steps, evaluations, checkpoints and records."""

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
from train.cli.progress import Left, Progress
from train.cli.signals import Cut, Stop
from train.config.sections import TrainSection
from train.devices.compile_ahead import Compiler
from train.devices.placement import copy_to_host, put_like
from train.run import checkpoints
from train.run.best import Best, judge
from train.run.checkpoints import Checkpoint, Rest
from train.run.recorder import Recorder
from train.run.state import State

logger = logging.getLogger(__name__)


def nothing(step: int, values: Mapping[str, float]) -> None:
    """Does nothing: the default `on_step`."""


_STEPS_ALONE = 12
"""Steps before evaluation programs are compiled: the time left is estimated from steps without any compilation."""


@dataclasses.dataclass(frozen=True)
class Loop:
    """The parts of a training that do not change from step to step.

    Attributes:
      train: the config's section `train`.
      steps, per_epoch: optimizer steps of the run, and of an epoch.
      base, frozen: the trees that are not trained.
      plan: plan(epoch) returns the planned batches of the epoch's steps; it depends only on its argument.
      batch: batch(planned) makes the arrays of one step, for `train_step`.
      count: count(planned) returns how many of `unit` (examples, tokens) a step processes.
      work: work(planned) returns a number proportional to the step's time: its token places, padding included.
      lengths: the padded lengths of batches.
      train_step: train_step(state, frozen, base, batch, key) returns (state, {"loss", "grad_norm"}), compiled.
      compiler: compiles programs ahead of their use.
      prepare: prepare(plan, state) queues the programs of a plan's steps.
      prepare_evaluation: prepare_evaluation(state) queues the programs of evaluations.
      evaluate: evaluate(adapter, check) returns {metric: value} of the validation split, including the loss; it calls
        check() before each batch, and stops if that raises.
      evaluation, evaluation_batches: the work of an evaluation, in the unit of `work`, and its number of batches.
      metric: the metric that chooses the best step.
      rate: rate(step) returns the learning rate.
      key: root of the dropout keys.
      on_step: on_step(step, {"loss", "grad_norm"}), called once for each step, in order.
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
    work: Callable[[Any], float]
    lengths: tuple[int, ...]
    train_step: Callable
    compiler: Compiler
    prepare: Callable[[Sequence[Any], State], None]
    prepare_evaluation: Callable[[State], None]
    evaluate: Callable[[Any, Callable[[], None]], dict[str, float]]
    evaluation: float
    evaluation_batches: int
    metric: str
    rate: Callable
    key: jax.Array
    on_step: Callable[[int, Mapping[str, float]], None] = nothing


def run_loop(
    loop: Loop, begin: Checkpoint, manager: ocp.CheckpointManager, recorder: Recorder, stop: Stop
) -> tuple[Best, float]:
    """Trains from `begin` to the last step, or until early stopping or a signal ends it.

    Args:
      begin: the state, best evaluation and rest of the step to go on from; its `state` is donated.
      manager, recorder: get the checkpoints, and the values that are logged; `stop` is asked after each step.

    Returns:
      (the best evaluation, examples or tokens per second while training). All checkpoints are complete by then.

    Raises:
      JloraError: the loss, its gradient or an evaluation is NaN or infinite (the newest checkpoint is from before
        it); or a checkpoint cannot be written.
    """
    start = int(begin.state.step)
    unread = deque[tuple[int, dict]]()  # values not yet read: a step may still run while the next batch is made
    evaluation_prepared = _evaluation_prepared(loop, start)
    with _progress(loop, start) as progress, loop.compiler.saying(progress.compiling):
        run = _Run(loop, manager, recorder, stop, progress, begin.state, begin.best, list(begin.rest.losses), start)
        ended = (begin.rest.unevaluated and not run.evaluate(start)) or run.is_exhausted()
        for step, (planned, left) in enumerate(plan_steps(loop, start, run.prepare), start + 1):
            if ended:
                break
            run.state, values = loop.train_step(run.state, loop.frozen, loop.base, loop.batch(planned), loop.key)
            unread.append((step, values))
            stopped, (log, evaluate, save) = stop.is_requested(), _due(loop, step)
            while len(unread) > (0 if log or evaluate or save or stopped else 1):
                run.read(*unread.popleft())
            rate = float(loop.rate(step - 1))
            progress.update(
                values["loss"], loop.count(planned), rate, loop.work(planned), _count_left(loop, step, left)
            )
            run.losses.append(values["loss"])
            if step == evaluation_prepared:
                loop.prepare_evaluation(run.state)
            if log:
                run.log(step, values, progress.per_second)
            unevaluated = evaluate
            if evaluate and not stopped:
                unevaluated = not run.evaluate(step)
            ended = stopped or unevaluated or run.is_exhausted()
            if save or ended:
                with progress.pause("checkpoint"):
                    run.save(step, unevaluated)
        checkpoints.wait(manager)
        return run.best, progress.per_second


def plan_steps(
    loop: Loop, start: int, prepare: Callable[[Sequence[Any]], None] = lambda plan: None
) -> Iterator[tuple[Any, float]]:
    """Yields (planned batch, work that is left after it) for each step from `start` on.

    The planned batch depends only on the plan and the step, not on earlier steps. A step of a later epoch is assumed to
    be as much work as the mean step of the current epoch.

    Args:
      loop: `per_epoch`, `steps`, `plan(epoch)` with epochs from 0, and `work(planned)` are read.
      start: steps already done; the first that is yielded is number `start`, counted from 0.
      prepare: prepare(plan) is called at the beginning of each epoch, with the planned batches of its steps that are
        still to be done.
    """
    for epoch in range(start // loop.per_epoch, math.ceil(loop.steps / loop.per_epoch)):
        begin, whole = epoch * loop.per_epoch, loop.plan(epoch)
        plan = whole[max(0, start - begin) : loop.steps - begin]
        later = max(0, loop.steps - begin - loop.per_epoch) * sum(map(loop.work, whole)) / loop.per_epoch
        left = np.cumsum([later, *map(loop.work, reversed(plan))])[:-1]
        prepare(plan)
        yield from zip(plan, reversed(left.tolist()), strict=True)


def _evaluation_prepared(loop: Loop, start: int) -> int:
    """Returns the step after which evaluation programs are queued: at most half way to the first evaluation."""
    every = loop.train.eval_every or loop.per_epoch
    first = min(loop.steps, (start // every + 1) * every)
    return start + max(1, min(_STEPS_ALONE, (first - start) // 2))


def _progress(loop: Loop, start: int) -> Progress:
    return Progress(
        loop.steps,
        start,
        loop.train.log_every,
        unit=loop.unit,
        evaluation=loop.evaluation,
        per_epoch=loop.per_epoch,
        is_compiling=lambda: loop.compiler.is_busy,
    )


def _count_left(loop: Loop, step: int, work: float) -> Left:
    """Returns what remains after a step, including the step's own evaluation and checkpoint."""
    evaluate_every = loop.train.eval_every or loop.per_epoch
    checkpoint_every = loop.train.checkpoint_every or evaluate_every
    return Left(work, *(math.ceil(loop.steps / n) - (step - 1) // n for n in (evaluate_every, checkpoint_every)))


def _due(loop: Loop, step: int) -> tuple[bool, bool, bool]:
    """Returns whether a log line, an evaluation and a checkpoint are due at this step."""
    train = loop.train
    evaluate_every = train.eval_every or loop.per_epoch
    log, evaluate, save = (
        step % every == 0 or step == loop.steps
        for every in (train.log_every, evaluate_every, train.checkpoint_every or evaluate_every)
    )
    return log, evaluate, save


def _format_metrics(found: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in found.items())


@dataclasses.dataclass
class _Run:
    """The parts of a training that change from step to step.

    Attributes:
      losses: of the steps that are not in a log line yet.
      saved: the step of the newest checkpoint.
    """

    loop: Loop
    manager: ocp.CheckpointManager
    recorder: Recorder
    stop: Stop
    progress: Progress
    state: State
    best: Best
    losses: list[Any]
    saved: int

    def prepare(self, plan: Sequence[Any]) -> None:
        self.loop.prepare(plan, self.state)

    def is_exhausted(self) -> bool:
        patience = self.loop.train.early_stopping_patience
        if patience is None or self.best.stale < patience:
            return False
        logger.info("stopped early: %d evaluations without a better %s", self.best.stale, self.loop.metric)
        return True

    def read(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        self.require_finite(step, values)
        self.loop.on_step(step, {name: float(value) for name, value in values.items()})

    def require_finite(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        for name, value in values.items():
            if not math.isfinite(float(value)):
                kept = f"the checkpoint of step {self.saved} is kept" if self.saved else "no checkpoint was written yet"
                raise JloraError(
                    f"step {step}: expected a finite {name}, found {float(value)}; stopped, {kept}."
                    " Try a smaller train.learning_rate, or look at the data."
                )

    def log(self, step: int, values: dict[str, Any], per_second: float) -> None:
        checkpoints.raise_failed_write(self.manager)
        numbers = {
            "loss": np.mean([float(loss) for loss in self.losses]),
            "grad_norm": values["grad_norm"],
            "learning_rate": self.loop.rate(step - 1),
            "epoch": step / self.loop.per_epoch,
            f"{self.loop.unit}_per_second": per_second,
        }
        self.recorder.log(step, numbers, "train")
        self.losses.clear()

    def evaluate(self, step: int) -> bool:
        """Evaluates; returns False if a signal cuts it short. The first call also evaluates the initial model."""
        try:
            # The initial model is evaluated here, because evaluation programs are compiled while the first steps run.
            is_first = self.best.value is None and self.loop.train.eval_on_start
            start = None
            if is_first:
                with self.progress.pause("start"):
                    start = self._evaluate(put_like(self.state.trainable, self.best.trainable))
            with self.progress.pause("evaluation"):
                found = self._evaluate(self.state.trainable)
        except Cut:
            return False
        if start is not None:
            self.recorder.log(step, start, "start")
            logger.info("before training  validation: %s", _format_metrics(start))
        self.require_finite(step, {"validation loss": found["loss"]})
        self.recorder.log(step, found, "validation")
        self.best = judge(self.best, self.loop.metric, found, step, lambda: copy_to_host(self.state.trainable))
        mark = "  (best so far)" if self.best.step == step else ""
        logger.info("step %d  validation: %s%s", step, _format_metrics(found), mark)
        return True

    def _evaluate(self, trainable: Any) -> dict[str, float]:
        """Computes metrics of the validation split; raises Cut if a signal comes."""
        with self.progress.counting("evaluating", self.loop.evaluation_batches) as tick:

            def check() -> None:
                tick()
                self.stop.check()

            return self.loop.evaluate(combine(trainable, self.loop.frozen), check)

    def save(self, step: int, unevaluated: bool) -> None:
        rest = Rest(tuple(float(loss) for loss in self.losses), unevaluated, self.recorder.lines)
        checkpoints.save(self.manager, Checkpoint(self.state, self.best, rest))
        self.saved = step
