"""The train step of a language model and what goes into it, with weights or without."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jlora
from train.config.run_config import rows_of_a_step
from train.lm.config import LMConfig
from train.lm.data.batches import Batch
from train.lm.objective import causal_loss
from train.loop import assemble
from train.loop.assemble import Training
from train.run.state import State
from train.sources.starting_adapter import Adapted


def training_of(config: LMConfig, model: Any, steps: int) -> Training:
    """What the config trains a model with over so many optimizer steps."""
    return assemble.training_of(config, causal_loss(model, model_dropout=config.train.dropout), steps)


def batch_names(config: LMConfig) -> list[str]:
    """The names of a batch's input arrays."""
    return ["input_ids", "attention_mask"] + ["segment_ids", "position_ids"] * config.data.packing


def arguments(config: LMConfig, adapted: Adapted, tx: optax.GradientTransformation) -> tuple:
    """The step's (state, frozen, base, batch, key) for its longest batch, all ShapeDtypeStructs."""
    trainable, frozen = jlora.split(adapted.adapter)
    ids = np.zeros((rows_of_a_step(config), config.data.max_length), np.int32)
    batch = Batch(dict.fromkeys(batch_names(config), ids), ids, np.zeros(ids.shape, np.float32))
    return jax.eval_shape(
        lambda *trees: trees,
        State(trainable, jax.eval_shape(tx.init, trainable), jnp.int32(0)),
        frozen,
        adapted.base,
        batch,
        jax.random.key(0),
    )
