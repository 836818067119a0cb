"""The train step of a config and what goes into it, with weights or without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jlora
from train.adapted import Adapted
from train.lm.batches import Batch
from train.lm.config import LMConfig
from train.lm.step import causal_loss
from train.optimizer import Schedule, optimizer, schedule
from train.run_config import learning_rate_of
from train.step import State, make_train_step


class Training(NamedTuple):
    """train_step(state, frozen, base, batch, key), the optimizer in it, and its learning rates."""

    step: Callable
    tx: optax.GradientTransformation
    rate: Schedule


def training_of(config: LMConfig, model: Any, steps: int) -> Training:
    """What the config trains with over so many optimizer steps."""
    rate = schedule(config.train, learning_rate_of(config), steps)
    tx = optimizer(config.train, rate)
    loss = causal_loss(model, model_dropout=config.train.dropout)
    return Training(make_train_step(loss, tx, config.train.gradient_accumulation_steps), tx, rate)


def rows_of_a_step(config: LMConfig) -> int:
    """Rows that one optimizer step takes, all its batches together."""
    return config.train.batch_size * config.train.gradient_accumulation_steps


def arguments(config: LMConfig, adapted: Adapted, tx: optax.GradientTransformation) -> tuple:
    """The step's (state, frozen, base, batch, key) for its longest batch, all ShapeDtypeStructs."""
    trainable, frozen = jlora.split(adapted.adapter)
    ids = np.zeros((rows_of_a_step(config), config.data.max_length), np.int32)
    names = ["input_ids", "attention_mask"] + ["segment_ids", "position_ids"] * config.data.packing
    batch = Batch(dict.fromkeys(names, ids), ids, np.zeros(ids.shape, np.float32))
    return jax.eval_shape(
        lambda *trees: trees,
        State(trainable, jax.eval_shape(tx.init, trainable), jnp.int32(0)),
        frozen,
        adapted.base,
        batch,
        jax.random.key(0),
    )
