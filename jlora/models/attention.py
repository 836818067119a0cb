"""Bidirectional attention over padded batches."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jlora.dropout import dropout


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    *,
    dropout_key: jax.Array | None = None,
    dropout_rate: float = 0.0,
) -> jax.Array:
    """softmax(query key^T / sqrt(D)) value, with dropout on the probabilities where a key is given.

    Args:
      query, key, value: (B, T, H, D), floating point.
      mask: bool (B, 1, 1, T), true where a token may be attended to.
      dropout_key: one key; None is evaluation.
      dropout_rate: probability that an attention probability is dropped.

    Returns:
      (B, T, H, D) in the dtype of `query`.
    """
    if dropout_key is None or dropout_rate == 0.0:
        with jax.numpy_dtype_promotion("standard"):  # bfloat16 is promoted implicitly inside
            return jax.nn.dot_product_attention(query, key, value, mask=mask)
    return attention_with_dropout(query, key, value, mask, dropout_key, dropout_rate)


def attention_with_dropout(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    dropout_key: jax.Array,
    dropout_rate: float,
) -> jax.Array:
    """As `attention`, written out: `jax.nn.dot_product_attention` has no dropout. The softmax is float32."""
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))  # BTHD->BHTD
    scores = jnp.einsum("BHTD,BHSD->BHTS", query, key, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores * jnp.float32(query.shape[-1] ** -0.5), jnp.finfo(jnp.float32).min)
    probabilities = dropout(dropout_key, jax.nn.softmax(scores, axis=-1).astype(value.dtype), dropout_rate)
    return jnp.einsum("BHTS,BHSD->BHTD", probabilities, value).transpose(0, 2, 1, 3)
