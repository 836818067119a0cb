"""What a decoder keeps of the tokens before: their keys and values, in slots of a fixed number."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jlora.models.visibility import Visibility, causal_visibility


class Cache(NamedTuple):
    """Keys and values of the tokens that went through a decoder so far.

    All rows write to the same slots, so prompts of different lengths are padded on the left.

    Attributes:
      keys, values: (layers, B, slots, key heads, width) each, in the order of the layers.
      valid: bool (B, slots), false for padding and for slots that are empty.
      length: int32 (), how many slots are written.
    """

    keys: jax.Array
    values: jax.Array
    valid: jax.Array
    length: jax.Array


class Slots(NamedTuple):
    """One layer's part of a cache: keys and values (B, slots, key heads, width)."""

    keys: jax.Array
    values: jax.Array


def empty_cache(layers: int, batch_size: int, size: int, heads: int, width: int, dtype: Any) -> Cache:
    """A cache of `size` slots a row, none of them written."""
    zeros = jnp.zeros((layers, batch_size, size, heads, width), dtype)
    return Cache(zeros, jnp.zeros_like(zeros), jnp.zeros((batch_size, size), bool), jnp.int32(0))


def opened(cache: Cache, batch: dict[str, jax.Array]) -> Cache:
    """The cache with the batch's tokens marked as valid; its keys and values are still to be written."""
    new = batch["attention_mask"].astype(bool)
    valid = lax.dynamic_update_slice(cache.valid, new, (jnp.int32(0), cache.length))
    return cache._replace(valid=valid)


def closed(cache: Cache, slots: Slots, batch: dict[str, jax.Array]) -> Cache:
    """The cache after all layers have written: `slots` are theirs, stacked."""
    return Cache(slots.keys, slots.values, cache.valid, cache.length + batch["input_ids"].shape[1])


def written(slots: Slots | None, key: jax.Array, value: jax.Array, start: Any) -> tuple[Any, Any, Any]:
    """(all keys, all values, the slots with the new ones in them).

    Args:
      slots: of this layer; None without a cache, where the new keys and values are all there are.
      key, value: (B, T, key heads, width), written to the slots from `start` on.
      start: int32 ().
    """
    if slots is None:
        return key, value, None
    zero = jnp.int32(0)
    keys, values = (
        lax.dynamic_update_slice(old, new.astype(old.dtype), (zero, start, zero, zero))
        for old, new in zip(slots, (key, value), strict=True)
    )
    return keys.astype(key.dtype), values.astype(value.dtype), Slots(keys, values)


def token_positions(batch: dict[str, jax.Array], cache: Cache | None = None) -> jax.Array:
    """int32 (B, T): the batch's own `position_ids`, or else places in the row, or valid tokens before in the cache.

    Args:
      cache: an opened one.
    """
    if "position_ids" in batch:
        return batch["position_ids"]
    ids = batch["input_ids"]
    if cache is None:
        return jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32)[None], ids.shape)
    counted = jnp.cumsum(cache.valid, axis=1, dtype=jnp.int32) - 1
    found = lax.dynamic_slice(counted, (jnp.int32(0), cache.length), ids.shape)
    return jnp.maximum(found, 0)


def row_lengths(batch: dict[str, jax.Array], cache: Cache | None = None) -> int | jax.Array:
    """How far a row's positions reach: the cache's slots, or int32 (B,) of `position_ids`, or the batch's tokens."""
    if cache is not None:
        return cache.keys.shape[2]
    return batch["position_ids"].max(axis=1) + 1 if "position_ids" in batch else batch["input_ids"].shape[1]


def visible(batch: dict[str, jax.Array], window: int | None, cache: Cache | None, kernel: str) -> Visibility:
    """Which tokens (or slots of the opened `cache`) each token of the batch sees: as `causal_visibility` says."""
    valid, start = (None, None) if cache is None else (cache.valid, cache.length)
    return causal_visibility(batch, window, valid, start, kernel)
