"""The loss of each kind of head, row by row, so that batches can be weighted and summed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


def row_losses(problem_type: str, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The loss of each row, float32 (B,).

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
