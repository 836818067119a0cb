"""Describes which keys each query sees by a few numbers for each token, without an array over all pairs."""

from __future__ import annotations

import dataclasses
from functools import reduce
from operator import and_
from typing import Any

import jax
import jax.numpy as jnp

KERNELS = ("auto", "blockwise", "cudnn", "splash", "full")
"""The names of the attention kernels; see `jlora.models.attention.attention`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Visibility:
    """Conditions under which a query sees a key. All must hold; a condition that is None or false is ignored.

    Attributes:
      query_segments, key_segments: int32 (B, T) and (B, S), both or neither: a query sees the keys with its own number.
        Queries have numbers from 0 on; no query sees a key with -1 (padding).
      start: int32 (), the position of the first query among the keys; None means 0.
      causal: a query sees no key after its own position.
      window: the number of positions that a query sees, its own and those right before it. Only with `causal`.
      packed: rows may hold several texts, each with a number of its own.
      kernel: which of KERNELS computes the attention.
    """

    query_segments: jax.Array | None = None
    key_segments: jax.Array | None = None
    start: jax.Array | None = None
    causal: bool = dataclasses.field(default=False, metadata={"static": True})
    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    packed: bool = dataclasses.field(default=False, metadata={"static": True})
    kernel: str = dataclasses.field(default="auto", metadata={"static": True})


def mask_visibility(attention_mask: jax.Array, kernel: str) -> Visibility:
    """Describes an encoder's batch: every token sees all tokens of its row whose mask (B, T) is not 0.

    In the result the query segments are 0, and the key segments 0 for tokens and -1 for padding; `causal` is false.
    `kernel` is the name of the kernel that computes the attention, one of KERNELS.
    """
    return Visibility(*_segments(attention_mask.astype(bool), attention_mask), kernel=kernel)


def causal_visibility(
    batch: dict[str, jax.Array], window: int | None, valid: jax.Array | None, start: jax.Array | None, kernel: str
) -> Visibility:
    """Describes a decoder's batch: a token sees itself and earlier tokens of its segment, but no padding.

    In the result the segments are `segment_ids`, or 0 without them, and -1 for keys that are padding or empty slots.

    Args:
      batch: `attention_mask` (B, T), and `segment_ids` (B, T) if rows hold several texts.
      window: the most tokens that one token sees, itself included; None means all.
      valid: bool (B, S), which slots of a cache hold tokens, including the batch's; None without a cache.
      start: int32 (), the first of the batch's slots; None if that is slot 0.
      kernel: the name of the kernel that computes the attention, one of KERNELS.
    """
    mask = batch["attention_mask"]
    segments = batch.get("segment_ids")
    queries, keys = _segments(mask.astype(bool) if valid is None else valid, mask, segments)
    packed = segments is not None
    return Visibility(queries, keys, start, causal=True, window=window, packed=packed, kernel=kernel)


def _segments(valid: jax.Array, mask: jax.Array, segments: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Returns segment numbers (of the queries, of the keys): 0 without segments; -1 for keys that are not valid."""
    own = jnp.zeros(mask.shape, jnp.int32) if segments is None else segments.astype(jnp.int32)
    return own, jnp.where(valid, jnp.int32(0) if segments is None else own, jnp.int32(-1))


def sees(visibility: Visibility, queries: Any, keys: Any) -> jax.Array | None:
    """Returns bool (B or 1, s, t): whether the queries at `queries` see the keys at `keys`; None if all see all.

    Args:
      queries: int32 (t,), counted from the batch's first query.
      keys: int32 (s,), counted from the first key.
    """
    queries, keys = (jnp.asarray(places, jnp.int32) for places in (queries, keys))
    conditions = []
    if visibility.causal:
        places = queries if visibility.start is None else visibility.start + queries
        back = (places[None, :] - keys[:, None])[None]
        conditions.append(back >= 0)
        if visibility.window is not None:
            conditions.append(back < visibility.window)
    if visibility.query_segments is not None and visibility.key_segments is not None:
        own, others = (
            jnp.take(segments, places, axis=1, mode="clip")
            for segments, places in ((visibility.query_segments, queries), (visibility.key_segments, keys))
        )
        conditions.append(others[:, :, None] == own[:, None, :])
    return reduce(and_, conditions) if conditions else None


def can_see(visibility: Visibility, query: int, queries: int, key: int, keys: int) -> bool:
    """Returns whether, by position, any query in [query, query + queries) can see any key in [key, key + keys).

    Only `causal` and `window` are read; the answer is True without `causal`, and with a `start`, which is not known
    yet.
    """
    if not visibility.causal or visibility.start is not None:
        return True
    too_old = visibility.window is not None and key + keys - 1 <= query - visibility.window
    return key <= query + queries - 1 and not too_old
