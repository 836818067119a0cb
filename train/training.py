"""The train step of a config, its optimizer, and the loop around them, whatever is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

import jlora
from train import devices
from train.adapted import Adapted
from train.loop import Loop
from train.optimizer import Schedule, optimizer, schedule
from train.run_config import RunConfig, learning_rate_of, steps_of
from train.step import State, TotalLoss, make_train_step


class Training(NamedTuple):
    """train_step(state, frozen, base, batch, key), the optimizer in it, and its learning rates."""

    step: Callable
    tx: optax.GradientTransformation
    rate: Schedule


def training_of(config: RunConfig, loss: TotalLoss, steps: int) -> Training:
    """What the config trains with over so many optimizer steps."""
    rate = schedule(config.train, learning_rate_of(config), steps)
    tx = optimizer(config.train, rate)
    return Training(make_train_step(loss, tx, config.train.gradient_accumulation_steps), tx, rate)


class Rows(NamedTuple):
    """The training rows, as `Loop` describes `plan`, `batch`, `count` and `unit`, and how many there are."""

    number: int
    plan: Callable[[int], Sequence[Any]]
    batch: Callable[[Any], Any]
    count: Callable[[Any], int]
    unit: str


def make_loop(
    config: RunConfig,
    adapted: Adapted,
    training: Training,
    rows: Rows,
    evaluate: Callable[[Any, Callable[[], None]], dict[str, float]],
    metric: str,
    mesh: Mesh | None,
) -> tuple[Loop, State]:
    """The loop of a run, and the state before its first step.

    Args:
      evaluate, metric: as `Loop` describes them.
      mesh: where `adapted` lies.
    """
    per_epoch, steps = steps_of(config, rows.number)
    trainable, frozen = jlora.split(adapted.adapter)
    state = devices.put_rest(mesh, State(trainable, training.tx.init(trainable), jnp.int32(0)))
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
        train_step=devices.train_step_on(mesh, training.step, state),
        evaluate=evaluate,
        metric=metric,
        rate=training.rate,
        key=jax.random.fold_in(jax.random.key(config.seed), 1),
    )
    return loop, state
