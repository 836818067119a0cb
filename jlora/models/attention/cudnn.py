"""Attention by cuDNN's fused kernel on NVIDIA GPUs, for rows padded at their end or packed with several texts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

# The public `jax.nn.dot_product_attention` does not take the offsets of packed texts.
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from jlora.models.attention.blockwise import Options, blockwise_attention
from jlora.models.attention.visibility import Visibility
from jlora.sharding.mesh import current_mesh

_SHORTEST_TEXT = 64
"""The fewest tokens per text, on average over a row; blockwise attention computes packed rows with more texts."""


def cudnn_obstacle(
    options: Options, query: Any, key: Any, visibility: Visibility, *, biased: bool, dropped: bool
) -> str | None:
    """Returns why cuDNN cannot compute such a call, the first reason found; None if it can.

    Reasons are a query that is not bfloat16 or float16, a softcap, a bias, dropout, keys of a cache (a `start`, or S is
    not T), heads of more than 128 features (256 on Hopper and later) or no multiple of 8, packed texts before Hopper or
    with a window, a mesh that splits the H heads but not the K, and that cuDNN is not installed.

    Args:
      query, key: (B, T, H, D) and (B, S, K, D), arrays or ShapeDtypeStructs.
      biased, dropped: whether there is a bias of the keys, and whether probabilities are dropped.
    """
    widest = 256 if cudnn.check_compute_capability("9.0") else 128
    heads, key_heads, mesh = query.shape[2], key.shape[2], current_mesh()
    parts = 1 if mesh is None else mesh.shape["tensor"]
    found = {
        f"it needs bfloat16 or float16, found {query.dtype}": query.dtype not in (jnp.bfloat16, jnp.float16),
        "it has no soft cap": options.softcap is not None,
        "it takes no bias of the keys (ALiBi) without an array over all pairs of tokens": biased,
        "it drops other probabilities than jlora does: train.dropout=false": dropped,
        "the keys are those of a cache": visibility.start is not None or query.shape[1] != key.shape[1],
        f"its heads have at most {widest} features, a multiple of 8; found {query.shape[-1]}": (
            query.shape[-1] % 8 != 0 or query.shape[-1] > widest
        ),
        "it packs several texts into a row on Hopper and later only": visibility.packed and widest == 128,
        "it packs no texts into rows with a window": visibility.packed and visibility.window is not None,
        f"a mesh splits its {heads} heads otherwise than the {key_heads} of the keys": (
            (heads % parts == 0) != (key_heads % parts == 0)
        ),
        "it was not found": not _is_found(),
    }
    return next((reason for reason, is_so in found.items() if is_so), None)


def cudnn_attention(
    options: Options, query: jax.Array, key: jax.Array, value: jax.Array, visibility: Visibility
) -> jax.Array:
    """Computes softmax(scale query key^T) value over the visible keys with cuDNN: (B, T, H, D) in the query's dtype.

    If a row has padding before tokens or too many short texts, `blockwise_attention` computes the whole batch.

    Args:
      options: `scale` is read; call it only if `cudnn_obstacle` finds none.
      query, key, value: (B, T, H, D), (B, T, K, D), (B, T, K, D).
    """

    def by_blocks(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return blockwise_attention(options, query, key, value, None, visibility, None)

    fused: Callable[..., jax.Array]
    if visibility.query_segments is None or visibility.key_segments is None:
        return _whole_rows(options, visibility, None, query, key, value)
    if visibility.packed:
        lengths, starts, fits = _texts(visibility.query_segments, visibility.key_segments)
        fused = partial(_attend_packed, options, visibility, lengths, starts)
    else:
        lengths, fits = _prefixes(visibility.key_segments)
        fused = partial(_whole_rows, options, visibility, lengths)
    return jax.lax.cond(fits, fused, by_blocks, query, key, value)


def _is_found() -> bool:
    try:
        return cudnn.check_cudnn_version() > 0
    except RuntimeError:
        return False


def _whole_rows(
    options: Options, visibility: Visibility, lengths: jax.Array | None, query: Any, key: Any, value: Any
) -> jax.Array:
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        scale=options.scale,
        is_causal=visibility.causal,
        key_value_seq_lengths=lengths,
        local_window_size=None if visibility.window is None else (visibility.window - 1, 0),
        implementation="cudnn",
    )


def _attend_packed(
    options: Options,
    visibility: Visibility,
    lengths: jax.Array,
    starts: jax.Array,
    query: Any,
    key: Any,
    value: Any,
) -> jax.Array:
    # The kernel writes neither results nor gradients of tokens that belong to no text.
    assert visibility.key_segments is not None
    holds_text = visibility.key_segments[:, :, None, None] >= 0
    query, key, value = (jnp.where(holds_text, x, jnp.zeros((), x.dtype)) for x in (query, key, value))
    causal = cudnn.MaskType.PADDING_CAUSAL if visibility.causal else cudnn.MaskType.PADDING
    lengths_and_starts = (lengths, lengths, starts, starts)
    found = cudnn.dot_product_attention(
        query, key, value, None, None, *lengths_and_starts, scale=options.scale, mask_type=causal
    )
    return jnp.where(holds_text, found, jnp.zeros((), found.dtype))


def _prefixes(key_segments: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (tokens of each row, int32 (B,); whether each row has tokens and all its padding after them)."""
    holds_token = key_segments >= 0
    lengths = holds_token.sum(1, dtype=jnp.int32)
    in_front = jnp.arange(key_segments.shape[1], dtype=jnp.int32)[None] < lengths[:, None]
    return lengths, (holds_token == in_front).all() & (lengths > 0).all()


def _texts(query_segments: jax.Array, key_segments: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Finds the texts in packed rows.

    Returns:
      (tokens of each text, int32 (B, M); its first token, (B, M + 1); whether each row has at most M texts, in order).
      The entries after a row's last text are -1, as cuDNN requires.
    """
    batch, length = key_segments.shape
    most = -(-length // _SHORTEST_TEXT)
    _, is_prefix = _prefixes(key_segments)
    begins = jnp.concatenate([jnp.ones((batch, 1), bool), query_segments[:, 1:] != query_segments[:, :-1]], axis=1)
    begins = begins & (key_segments >= 0)
    number = jnp.cumsum(begins, axis=1, dtype=jnp.int32) - 1
    row = jnp.broadcast_to(jnp.arange(batch)[:, None], number.shape)
    own = jnp.where(key_segments >= 0, number, most)  # out of bounds is dropped
    lengths = jnp.zeros((batch, most), jnp.int32).at[row, own].add(1, mode="drop")
    starts = jnp.cumsum(lengths, axis=1, dtype=jnp.int32) - lengths
    is_text = lengths > 0
    in_turn = (query_segments[:, 1:] >= query_segments[:, :-1]) | (key_segments[:, 1:] < 0)
    fits = is_prefix & in_turn.all() & (number < most).all()
    no_more = jnp.full((batch, 1), -1, jnp.int32)
    starts = jnp.concatenate([jnp.where(is_text, starts, -1), no_more], axis=1)
    return jnp.where(is_text, lengths, -1), starts, fits
