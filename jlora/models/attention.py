"""Attention with everything that models differ in: scale, soft cap, bias, dropout, shared key heads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jlora.dropout import dropout
from jlora.models.partition import are_heads_split


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    bias: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
    dropout_rate: float = 0.0,
) -> jax.Array:
    """softmax(scale query key^T + bias) value, with dropout on the probabilities where a key is given.

    Scores and softmax are float32. (`jax.nn.dot_product_attention` has no dropout and no soft cap.)

    Args:
      query: (B, T, H, D), floating point. key, value: (B, S, K, D), each of the K heads shared by H / K queries.
      mask: bool, (B, 1, T, S) or broadcast to it: true where a token may be attended to.
      scale: of the scores; None is 1 / sqrt(D).
      softcap: scores become softcap * tanh(scores / softcap), as in Gemma 2.
      bias: floating point, (B, H, T, S) or broadcast to it, added to the scores.
      dropout_key: one key; None is evaluation.
      dropout_rate: probability that an attention probability is dropped.

    Returns:
      (B, T, H, D) in the dtype of `query`.
    """
    (rows, length, heads, width), (slots, key_heads) = query.shape, key.shape[1:3]
    # The queries that share a key are rows of one product, BT(KG)D -> (BK)(GT)D: on a CPU twice as fast as by heads.
    # Where a mesh splits the heads, B and K stay apart: an array cannot be split along a part of an axis.
    products = (rows, key_heads) if are_heads_split() else (rows * key_heads,)
    batch, last = tuple(range(len(products))), len(products) + 1
    query = query.reshape(rows, length, key_heads, -1, width).transpose(0, 2, 3, 1, 4).reshape(*products, -1, width)
    key, value = (x.transpose(0, 2, 1, 3).reshape(*products, slots, -1) for x in (key, value))
    scores = lax.dot_general(query, key, (((last,), (last,)), (batch, batch)), preferred_element_type=jnp.float32)
    scores = scores.reshape(rows, heads, length, slots) * jnp.float32(width**-0.5 if scale is None else scale)
    scores = scores if softcap is None else softcap * jnp.tanh(scores / softcap)
    scores = scores if bias is None else scores + bias.astype(jnp.float32)
    probabilities = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min), axis=-1).astype(value.dtype)
    if dropout_key is not None:
        probabilities = dropout(dropout_key, probabilities, dropout_rate)
    probabilities = probabilities.reshape(*query.shape[:-1], slots)
    mixed = lax.dot_general(probabilities, value, (((last,), (last - 1,)), (batch, batch)))
    mixed = mixed.reshape(rows, key_heads, -1, length, width).transpose(0, 3, 1, 2, 4)  # (BK)(GT)D -> BTKGD
    return mixed.reshape(rows, length, heads, width)
