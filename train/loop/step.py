"""One optimizer step: a pure function of its arguments, compiled once for each shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from jlora.ops.dropout_key import hash_key
from jlora.sharding.mesh import BATCH, current_mesh
from train.devices.compilation import jit
from train.run.state import State

TotalLoss = Callable[[Any, Any, Any, Any, jax.Array], jax.Array]
"""total_loss(trainable, frozen, base, batch, key) -> float32 (): the sum of the batch's losses times its weights."""


class StepArguments(NamedTuple):
    """The arguments of a train step: arrays, or ShapeDtypeStructs if it is only planned.

    Attributes:
      state: the State, which the step changes.
      frozen: the adapter's arrays that are not trained, the second result of `jlora.split`.
      base: the model's weights.
      batch: a tree of arrays (B, ...) with an attribute `weights`.
      key: root of the dropout keys.
    """

    state: State
    frozen: Any
    base: Any
    batch: Any
    key: jax.Array


def make_train_step(total_loss: TotalLoss, tx: optax.GradientTransformation, accumulation: int) -> Callable:
    """Makes train_step(state, frozen, base, batch, key) -> (state, {"loss", "grad_norm"}), which donates the state.

    `state` is State(trainable, optimizer, step): the trained leaves, the state of `tx` (`tx.init(trainable)`), and
    int32 (). `batch` is a tree of arrays (B, ...) with an attribute `weights`. The loss is the weighted mean over the
    whole batch, even if it is computed in `accumulation` equal parts: their sums are added and divided once, by the sum
    of the weights or by 1 if that is less. Both values are scalar arrays; grad_norm is that of the mean's gradient.

    Args:
      total_loss: total_loss(trainable, frozen, base, batch, key) -> the sum (not the mean) of the losses times their
        weights, a scalar. Called with the batch, or each part of it, and a key that depends on the step (and the part).
      tx: gets the gradients of the mean, a tree of the structure of `state.trainable`.
      accumulation: the number of parts; B is a multiple of it.
    """

    def sum_gradients(trainable: Any, frozen: Any, base: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        value_and_grad = jax.value_and_grad(total_loss)
        if accumulation == 1:
            return value_and_grad(trainable, frozen, base, batch, key)

        def part(sums: tuple, numbered: tuple) -> tuple:
            number, rows = numbered
            result = value_and_grad(trainable, frozen, base, rows, jax.random.fold_in(key, number))
            return jax.tree.map(jnp.add, sums, result), None

        zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, trainable))
        parts = jax.tree.map(lambda x: _rows_shared(x.reshape(accumulation, -1, *x.shape[1:])), batch)
        return jax.lax.scan(part, zero, (jnp.arange(accumulation), parts))[0]

    def train_step(state: State, frozen: Any, base: Any, batch: Any, key: jax.Array) -> tuple[State, dict]:
        loss, grads = sum_gradients(state.trainable, frozen, base, batch, hash_key(jax.random.fold_in(key, state.step)))
        count = jnp.maximum(jnp.sum(batch.weights), 1.0)
        grads = jax.tree.map(lambda g: g / count.astype(g.dtype), grads)
        updates, opt_state = tx.update(grads, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        values = {"loss": loss / count, "grad_norm": optax.tree.norm(grads)}
        return State(trainable, opt_state, state.step + 1), values

    return jit(train_step, donate_argnums=0)


def _rows_shared(parts: jax.Array) -> jax.Array:
    """Splits the rows of each part of a batch (A, B, ...) over the devices of the mesh, if one is set."""
    return parts if current_mesh() is None else jax.lax.with_sharding_constraint(parts, PartitionSpec(None, *BATCH))
