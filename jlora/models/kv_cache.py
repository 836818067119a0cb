"""A decoder's cache: keys and values of earlier tokens, in a fixed number of slots."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jlora.errors import UnsupportedModelError
from jlora.models.attention.visibility import Visibility, causal_visibility


class Cache(NamedTuple):
    """Keys and values of the tokens that a decoder has processed so far; `empty_cache` makes one.

    All rows write to the same slots, so prompts of different lengths are padded on the left. While a batch runs, its
    cache is "opened": `mark_tokens_valid` has set `valid` for the batch's tokens, and `length` does not count them yet.

    Attributes:
      keys, values: (layers, B, key heads, width, slots) and (layers, B, key heads, slots, width), in the order of the
        layers; or tuples with an array for each layer: see `jlora.models.unstack_layers`.
      valid: bool (B, slots), false for padding and for empty slots.
      length: int32 (), how many slots have been written.
      reach: int32 (B,), how many tokens each row will finally have. Position encodings that depend on the length of the
        row use this number from the first token on, because keys and later queries must be rotated alike.
    """

    keys: Any
    values: Any
    valid: jax.Array
    length: jax.Array
    reach: jax.Array


class Slots(NamedTuple):
    """One layer's part of a cache: keys (B, key heads, width, slots), values (B, key heads, slots, width).

    In these layouts the products of one token with all slots read contiguous rows.
    """

    keys: Any
    values: Any


def empty_cache(layers: int, batch_size: int, size: int, heads: int, width: int, dtype: Any) -> Cache:
    """Makes an empty cache of `size` slots per row, for rows of `size` tokens.

    `heads` are those of the keys, `width` the features of one; keys and values are zeros of `dtype`, no slot is valid.
    """
    keys = jnp.zeros((layers, batch_size, heads, width, size), dtype)
    valid = jnp.zeros((batch_size, size), bool)
    values = jnp.zeros_like(keys, shape=(layers, batch_size, heads, size, width))
    return Cache(keys, values, valid, jnp.int32(0), jnp.full(batch_size, size, jnp.int32))


def with_room(cache: Cache, size: int) -> Cache:
    """Extends the cache at its end by empty slots, to `size` slots, at least as many as it has; `reach` stays.

    Its keys and values are stacked arrays, not tuples.
    """
    more = size - cache.valid.shape[1]
    keys = jnp.pad(cache.keys, [(0, 0)] * 4 + [(0, more)])
    values = jnp.pad(cache.values, [(0, 0)] * 3 + [(0, more), (0, 0)])
    return cache._replace(keys=keys, values=values, valid=jnp.pad(cache.valid, [(0, 0), (0, more)]))


def mark_tokens_valid(cache: Cache, batch: dict[str, jax.Array]) -> Cache:
    """Marks the batch's tokens as valid, before the layers write their keys and values: this opens the cache.

    `attention_mask` (B, T) of the batch replaces `valid` in the T slots from `cache.length` on; the length stays.
    """
    new = batch["attention_mask"].astype(bool)
    valid = lax.dynamic_update_slice(cache.valid, new, (jnp.int32(0), cache.length))
    return cache._replace(valid=valid)


def store_slots(cache: Cache, slots: Slots, batch: dict[str, jax.Array]) -> Cache:
    """Stores the slots that all layers have written, stacked, and advances the cache's length by the batch's T."""
    length = cache.length + batch["input_ids"].shape[1]
    return cache._replace(keys=slots.keys, values=slots.values, length=length)


def update_slots(slots: Slots | None, key: jax.Array, value: jax.Array, start: Any) -> tuple[Any, Any, Any]:
    """Writes new keys and values into a layer's slots; returns (all keys, all values, slots).

    Args:
      slots: of this layer; None without a cache, and then the result is (key, value, None).
      key, value: (B, T, key heads, width), written to the slots from `start` on. If T is the number of slots, they
        replace all slots.
      start: int32 ().

    Returns:
      All keys and values, (B, slots, key heads, width) in the dtypes of `key` and `value`, and the new Slots in the
      dtype of the old ones.
    """
    if slots is None:
        return key, value, None
    new = Slots(key.transpose(0, 2, 3, 1), value.swapaxes(1, 2))
    if new.keys.shape == slots.keys.shape:
        return key, value, Slots(*(part.astype(old.dtype) for part, old in zip(new, slots, strict=True)))
    zero = jnp.int32(0)
    places = Slots((zero, zero, zero, start), (zero, zero, start, zero))
    keys, values = (
        lax.dynamic_update_slice(old, part.astype(old.dtype), place)
        for old, part, place in zip(slots, new, places, strict=True)
    )
    all_keys, all_values = keys.transpose(0, 3, 1, 2), values.swapaxes(1, 2)
    return all_keys.astype(key.dtype), all_values.astype(value.dtype), Slots(keys, values)


def token_positions(batch: dict[str, jax.Array], cache: Cache | None = None) -> jax.Array:
    """Returns int32 (B, T): `position_ids` if the batch has them, else the place in the row or among valid slots.

    Args:
      batch: `input_ids` (B, T), perhaps `position_ids` (B, T).
      cache: an opened cache (`mark_tokens_valid`), or None. With one, a position is the number of valid slots up to the
        token's own, minus 1, at least 0; without one it is 0, 1, ..., whatever the mask.
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
    """Returns the length of the rows: `cache.reach`, int32 (B,), if there is a cache.

    Without one it is the largest of `position_ids` plus 1, int32 (B,), or else T of `input_ids` (B, T), an int.
    """
    if cache is not None:
        return cache.reach
    return batch["position_ids"].max(axis=1) + 1 if "position_ids" in batch else batch["input_ids"].shape[1]


def visible(batch: dict[str, jax.Array], window: int | None, cache: Cache | None, kernel: str) -> Visibility:
    """Describes which tokens, or slots of the opened `cache`, each token sees, as `causal_visibility` does.

    Args:
      batch: `input_ids` and `attention_mask` (B, T), and `segment_ids` (B, T) if rows hold several texts.
      window: the most tokens that one token sees, itself included; None means all.
      cache: its `valid` includes the batch's tokens (`mark_tokens_valid`), its `length` does not; None without a cache.
      kernel: the name of the kernel that computes the attention.

    Raises:
      UnsupportedModelError: a window of less than 1 token.
    """
    if window is not None and window < 1:
        raise UnsupportedModelError(
            f"config.json: sliding_window or window_size: expected 1 token or more, or null for none; found {window}"
        )
    if cache is None or cache.valid.shape == batch["input_ids"].shape:  # no tokens come before the batch
        return causal_visibility(batch, window, cache and cache.valid, None, kernel)
    valid, start = cache.valid, cache.length
    return causal_visibility(batch, window, valid, start, kernel)
