"""Makes the arguments of a language model's train step as shapes, without weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jlora
from jlora.lora.adapted_model import Adapted
from train.config.run_config import rows_of_a_step
from train.lm.config import LMConfig
from train.lm.data.batches import Batch
from train.loop.step import StepArguments
from train.run.state import State


def batch_names(config: LMConfig) -> list[str]:
    """Returns the names of a batch's input arrays: input_ids and attention_mask.

    With `data.packing` segment_ids and position_ids follow.
    """
    return ["input_ids", "attention_mask"] + ["segment_ids", "position_ids"] * config.data.packing


def arguments(config: LMConfig, adapted: Adapted, tx: optax.GradientTransformation) -> StepArguments:
    """Returns the step's arguments for its longest batch, as ShapeDtypeStructs.

    That batch has `data.max_length` tokens in each of the rows of a step (batch_size * gradient_accumulation_steps).
    `tx` is the optimizer, whose state is shaped; the arrays of `adapted` may be ShapeDtypeStructs already.
    """
    trainable, frozen = jlora.split(adapted.adapter)
    ids = np.zeros((rows_of_a_step(config), config.data.max_length), np.int32)
    batch = Batch(dict.fromkeys(batch_names(config), ids), ids, np.zeros(ids.shape, np.float32))
    return jax.eval_shape(
        StepArguments,
        State(trainable, jax.eval_shape(tx.init, trainable), jnp.int32(0)),
        frozen,
        adapted.base,
        batch,
        jax.random.key(0),
    )
