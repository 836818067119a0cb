"""Attention for the one token of a decoding step: one row of scores per head, in the cache's own layouts."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jlora.models.attention.blockwise import Options
from jlora.models.attention.softcap import cap_scores
from jlora.models.attention.visibility import Visibility, sees


def one_token_attention(
    options: Options,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    key_bias: jax.Array | None,
    visibility: Visibility,
) -> jax.Array:
    """Computes softmax(capped scores + key_bias) value for one query of each row; 0 for queries that see no key.

    The products read keys as (B, K, D, S) and values as (B, K, S, D). If the arguments are views of a cache in these
    layouts, they are not copied.

    Args:
      options: `scale` and `softcap` are read; there is no dropout.
      query: (B, 1, H, D).
      key, value: (B, S, K, D); H / K query heads share each of the K heads.
      key_bias: float32 (B, H, S), added to the scores of each key; None adds nothing.
      visibility: which keys each query sees.

    Returns:
      (B, 1, H, D) in the query's dtype.
    """
    (batch, _, heads, width), (slots, key_heads) = query.shape, key.shape[1:3]
    grouped = query.reshape(batch, key_heads, -1, width)
    scores = _dot(grouped, key.transpose(0, 2, 3, 1)) * jnp.float32(options.scale)
    scores = cap_scores(scores, options.softcap)
    if key_bias is not None:
        scores = scores + key_bias.reshape(scores.shape)
    seen = sees(visibility, jnp.arange(1), jnp.arange(slots))
    if seen is None:
        probabilities = jax.nn.softmax(scores, axis=-1)
    else:
        seen = seen[:, None, None, :, 0]
        scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
        probabilities = jnp.where(seen, jax.nn.softmax(scores, axis=-1), 0)
    mixed = _dot(probabilities.astype(value.dtype), value.transpose(0, 2, 1, 3))
    return mixed.reshape(batch, 1, heads, width).astype(query.dtype)


def _dot(left: jax.Array, right: jax.Array) -> jax.Array:
    """Multiplies matrices (B, K, ., .) in float32."""
    contract = (((3,), (2,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(left, right, contract, preferred_element_type=jnp.float32)
