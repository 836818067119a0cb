"""Assembles a config's train step, its optimizer and the training loop, for all kinds of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jax.sharding import Mesh

import jlora
from jlora.lora.adapted_model import Adapted
from train.config.run_config import RunConfig, learning_rate_of, rows_of_a_step, steps_of
from train.data.bucketing import PlannedBatch, first_of_each_length
from train.data.random_streams import Stream, stream_key
from train.devices import placement
from train.devices.compile_ahead import CompiledAhead, Compiler
from train.loop.loop import Loop
from train.loop.optimizer import Schedule, optimizer, schedule
from train.loop.step import TotalLoss, make_train_step
from train.run.padded_lengths import EVALUATION
from train.run.state import State


class Training(NamedTuple):
    """What a run's steps are computed by.

    Attributes:
      step: the jitted train_step(state, frozen, base, batch, key), from `make_train_step`.
      tx: its optimizer.
      rate: rate(step) returns the learning rate.
    """

    step: Callable
    tx: optax.GradientTransformation
    rate: Schedule


def training_of(config: RunConfig, loss: TotalLoss, steps: int) -> Training:
    """Makes the train step, optimizer and schedule of the config for `steps` optimizer steps.

    Args:
      config: its section `train` is read, and the peak learning rate (`learning_rate_of`).
      loss: total_loss(trainable, frozen, base, batch, key) -> the sum of the batch's losses times their weights.
    """
    rate = schedule(config.train, learning_rate_of(config), steps)
    tx = optimizer(config.train, rate)
    return Training(make_train_step(loss, tx, config.train.gradient_accumulation_steps), tx, rate)


class TrainingRows(NamedTuple):
    """The training rows, and how their batches are made.

    Attributes:
      number: of rows.
      plan: plan(epoch) returns the planned batches of the epoch's steps.
      batch: batch(planned) makes the arrays of one step.
      count: count(planned) returns how many of `unit` a step processes.
      unit: "examples" or "tokens", for speeds.
      lengths: the padded lengths of batches.
    """

    number: int
    plan: Callable[[int], Sequence[PlannedBatch]]
    batch: Callable[[PlannedBatch], Any]
    count: Callable[[PlannedBatch], int]
    unit: str
    lengths: tuple[int, ...]


class Evaluation(NamedTuple):
    """The evaluation of the validation split.

    Attributes:
      run: run(adapter, check) returns {metric: value}, including the loss; it calls check() before each batch, and
        stops if that raises.
      metric: the metric that chooses the best step.
      prepare: prepare(adapter) queues the programs of the evaluation.
      places: the number of token places that it computes, padding included.
      batches: the number of its batches.
    """

    run: Callable[[Any, Callable[[], None]], dict[str, float]]
    metric: str
    prepare: Callable[[Any], None]
    places: int
    batches: int


def make_loop(
    config: RunConfig,
    adapted: Adapted,
    training: Training,
    rows: TrainingRows,
    evaluation: Evaluation,
    compiler: Compiler,
    mesh: Mesh | None,
) -> tuple[Loop, State]:
    """Makes the loop of a run, and the state before its first step.

    Args:
      config: `train`, `seed` and what `steps_of` reads.
      adapted: the model, its base, and the adapter that training starts from, on `mesh` if there is one.
      training: a result of `training_of` for all steps of the run.
      rows: plan and batches of the training rows.
      evaluation: how the validation split is evaluated.
      compiler: compiles the train step for each batch length, before it is needed.
      mesh: of the run; None if there is none.

    Returns:
      (the Loop, State(the adapter's trainable arrays, `training.tx`'s first state, 0)).
    """
    per_epoch, steps = steps_of(config, rows.number)
    trainable, frozen = jlora.split(adapted.adapter)
    state = placement.put_rest(mesh, State(trainable, training.tx.init(trainable), jnp.int32(0)))
    step = CompiledAhead(placement.train_step_on(mesh, training.step, state), compiler, batch=3)
    key = stream_key(config.seed, Stream.DROPOUT)
    size = rows_of_a_step(config)

    def prepare(plan: Sequence[PlannedBatch], state: State) -> None:
        for planned in first_of_each_length(plan):
            name = f"training, {planned.length} tokens a row"
            step.prepare(name, state, frozen, adapted.base, rows.batch(planned), key)

    loop = Loop(
        train=config.train,
        steps=steps,
        per_epoch=per_epoch,
        base=adapted.base,
        frozen=frozen,
        plan=rows.plan,
        batch=rows.batch,
        count=rows.count,
        unit=rows.unit,
        work=lambda planned: planned.length * size,
        lengths=rows.lengths,
        train_step=step,
        compiler=compiler,
        prepare=prepare,
        prepare_evaluation=lambda state: evaluation.prepare(jlora.combine(state.trainable, frozen)),
        evaluate=evaluation.run,
        evaluation=evaluation.places * EVALUATION,
        evaluation_batches=evaluation.batches,
        metric=evaluation.metric,
        rate=training.rate,
        key=key,
    )
    return loop, state
