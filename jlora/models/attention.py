"""Attention with everything that models differ in: scale, soft cap, bias, dropout, shared key heads."""

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
    scale: float | None = None,
    softcap: float | None = None,
    bias: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
    dropout_rate: float = 0.0,
) -> jax.Array:
    """softmax(scale query key^T + bias) value, with dropout on the probabilities where a key is given.

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
    rate = 0.0 if dropout_key is None else dropout_rate
    if rate == 0.0 and softcap is None:
        with jax.numpy_dtype_promotion("standard"):  # bfloat16 is promoted implicitly inside
            return jax.nn.dot_product_attention(query, key, value, bias=bias, mask=mask, scale=scale)
    return _written_out(query, key, value, mask, scale, softcap, bias, dropout_key, rate)


def _written_out(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    scale: float | None,
    softcap: float | None,
    bias: jax.Array | None,
    dropout_key: jax.Array | None,
    dropout_rate: float,
) -> jax.Array:
    """The same by formula: `jax.nn.dot_product_attention` has no dropout and no soft cap. The softmax is float32."""
    key, value = (jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    query, key, value = (x.transpose(0, 2, 1, 3) for x in (query, key, value))  # BTHD->BHTD
    scores = jnp.einsum("BHTD,BHSD->BHTS", query, key, preferred_element_type=jnp.float32)
    scores = scores * jnp.float32(query.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if softcap is None else softcap * jnp.tanh(scores / softcap)
    scores = scores if bias is None else scores + bias.astype(jnp.float32)
    probabilities = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(jnp.float32).min), axis=-1).astype(value.dtype)
    if dropout_key is not None:
        probabilities = dropout(dropout_key, probabilities, dropout_rate)
    return jnp.einsum("BHTS,BHSD->BHTD", probabilities, value).transpose(0, 2, 1, 3)
