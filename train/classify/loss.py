"""Computes the loss of a classifier for each row, so that batches can be weighted and summed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from jlora import adapt, combine
from train.classify.data.batches import Batch
from train.loop.step import TotalLoss


def classification_loss(apply: Callable, problem_type: str, *, model_dropout: bool) -> TotalLoss:
    """Makes total_loss(trainable, frozen, base, batch, key): the sum of a batch's losses times the rows' weights.

    `trainable` and `frozen` are the two trees of `jlora.split(adapter)`, `batch` is a Batch. The result is float32 ().

    Args:
      apply: called as apply(base, inputs, rngs=...), returns logits float32 (B, L); `rngs` is {"dropout": key} or None.
      problem_type: as in `row_losses`.
      model_dropout: whether the model's own dropout is active; the adapter's dropout has its own rate.
    """
    adapted = adapt(apply)

    def total_loss(trainable: Any, frozen: Any, base: Any, batch: Batch, key: jax.Array) -> jax.Array:
        adapter_key, model_key = jax.random.split(key)
        rngs = {"dropout": model_key} if model_dropout else None
        logits = adapted(base, combine(trainable, frozen), batch.inputs, dropout_key=adapter_key, rngs=rngs)
        return jnp.sum(row_losses(problem_type, logits, batch.labels) * batch.weights)

    return total_loss


def row_losses(problem_type: str, logits: jax.Array, labels: ArrayLike) -> jax.Array:
    """Computes the loss of each row, float32 (B,).

    Args:
      problem_type: `single_label_classification` (cross-entropy; labels int32 (B,)),
        `multi_label_classification` (binary cross-entropy, mean over labels; labels float32 (B, L)) or
        `regression` (squared error; labels float32 (B,)).
      logits: float32 (B, L); (B, 1) for regression.
    """
    if problem_type == "regression":
        return jnp.square(jnp.squeeze(logits, 1) - labels)
    if problem_type == "multi_label_classification":
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, labels), axis=-1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
