"""The trainer's own step, with compilation timed apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common.timing import timed
from jlora import split
from jlora.lora.adapted_model import Adapted
from train.classify.config import Config
from train.classify.data.batches import Batch
from train.classify.data.labels import Labels
from train.classify.loss import classification_loss
from train.config.run_config import learning_rate_of
from train.loop.optimizer import optimizer, schedule
from train.loop.step import make_train_step
from train.run.state import State


@dataclasses.dataclass
class JloraRun:
    """A training run of `train.classify`, one step a call.

    Attributes:
      train_step, state, frozen, base, key: what the trainer's loop holds.
      programs: {shape of input_ids: compiled step}. compile_seconds: {shape: seconds}, tracing included.
    """

    train_step: Any
    state: State
    frozen: Any
    base: Any
    key: jax.Array
    programs: dict[tuple[int, ...], Callable] = dataclasses.field(default_factory=dict)
    compile_seconds: dict[tuple[int, ...], float] = dataclasses.field(default_factory=dict)

    @property
    def trainable(self) -> int:
        """The number of trained parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.state.trainable))

    def compile(self, batch: Batch) -> None:
        """Makes the program for batches of this shape, where there is none yet."""
        shape = batch.inputs["input_ids"].shape
        if shape not in self.programs:
            arguments = (self.state, self.frozen, self.base, batch, self.key)
            seconds, program = timed(lambda: self.train_step.lower(*arguments).compile())
            self.programs[shape], self.compile_seconds[shape] = program, seconds

    def __call__(self, batch: Batch) -> float:
        """Takes one step; returns the loss."""
        program = self.programs[batch.inputs["input_ids"].shape]
        self.state, values = program(self.state, self.frozen, self.base, batch, self.key)
        return float(values["loss"])


def start(config: Config, adapted: Adapted, labels: Labels, steps: int) -> JloraRun:
    """A run as `train.classify` would start it, `steps` steps long. `adapted` stays as it is."""
    trainable, frozen = split(jax.tree.map(lambda x: jnp.array(x, copy=True), adapted.adapter))
    tx = optimizer(config.train, schedule(config.train, learning_rate_of(config), steps))
    loss = classification_loss(adapted.model.apply, labels.problem_type, model_dropout=config.train.dropout)
    train_step = make_train_step(loss, tx, accumulation=1)
    state = State(trainable, tx.init(trainable), jnp.int32(0))
    return JloraRun(train_step, state, frozen, adapted.base, jax.random.key(config.seed))
