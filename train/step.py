"""One optimizer step and one evaluation step: pure functions of their arguments, compiled once for each shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jlora import adapt, combine
from train.loss import row_losses


class State(NamedTuple):
    """What a step changes: the trained leaves, the optimizer's state, and the number of steps taken (int32)."""

    trainable: Any
    optimizer: Any
    step: jax.Array


class Rows(NamedTuple):
    """A batch on the device: inputs {name: int32 (B, T)}, labels (B, ...), weights float32 (B,), 0 for filler."""

    inputs: dict[str, Any]
    labels: Any
    weights: Any


def make_train_step(
    apply: Callable,
    problem_type: str,
    tx: optax.GradientTransformation,
    accumulation: int,
    *,
    model_dropout: bool,
) -> Callable:
    """train_step(state, frozen, base, rows, key) -> (state, {"loss", "grad_norm"}); state is donated.

    The loss is the weighted mean over the rows of the whole batch, also where it is computed in
    `accumulation` parts: the parts' sums are added and divided once.

    Args:
      apply: `model.apply(base, inputs, rngs=...)`, logits float32 (B, L).
      problem_type: as in `row_losses`.
      tx: the optimizer.
      accumulation: number of equal parts in which a batch is computed.
      model_dropout: whether the model's own dropout is on; the adapter's has a rate of its own.
    """
    adapted = adapt(apply)

    def total_loss(trainable: Any, frozen: Any, base: Any, rows: Rows, key: jax.Array) -> jax.Array:
        adapter_key, model_key = jax.random.split(key)
        rngs = {"dropout": model_key} if model_dropout else None
        logits = adapted(base, combine(trainable, frozen), rows.inputs, dropout_key=adapter_key, rngs=rngs)
        return jnp.sum(row_losses(problem_type, logits, rows.labels) * rows.weights)

    def summed(trainable: Any, frozen: Any, base: Any, rows: Rows, key: jax.Array) -> tuple[jax.Array, Any]:
        value_and_grad = jax.value_and_grad(total_loss)
        if accumulation == 1:
            return value_and_grad(trainable, frozen, base, rows, key)

        def part(sums: tuple, numbered: tuple) -> tuple:
            number, rows = numbered
            result = value_and_grad(trainable, frozen, base, rows, jax.random.fold_in(key, number))
            return jax.tree.map(jnp.add, sums, result), None

        zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, trainable))
        parts = jax.tree.map(lambda x: x.reshape(accumulation, -1, *x.shape[1:]), rows)
        return jax.lax.scan(part, zero, (jnp.arange(accumulation), parts))[0]

    def train_step(state: State, frozen: Any, base: Any, rows: Rows, key: jax.Array) -> tuple[State, dict]:
        step_key = jax.random.fold_in(key, state.step)
        loss, grads = summed(state.trainable, frozen, base, rows, step_key)
        count = jnp.maximum(jnp.sum(rows.weights), 1.0)
        grads = jax.tree.map(lambda g: g / count.astype(g.dtype), grads)
        updates, opt_state = tx.update(grads, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        values = {"loss": loss / count, "grad_norm": optax.tree.norm(grads)}
        return State(trainable, opt_state, state.step + 1), values

    return jax.jit(train_step, donate_argnums=0)


def make_eval_step(apply: Callable) -> Callable:
    """eval_step(adapter, base, inputs) -> logits float32 (B, L); no dropout. `adapter` may be None."""
    adapted = adapt(apply)
    return jax.jit(lambda adapter, base, inputs: adapted(base, adapter, inputs))
