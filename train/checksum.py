"""Checksums of arrays, computed where they lie: the same on one device and on any mesh."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
_SEEDS = (0x9E3779B1, 0x85EBCA6B)
"""Odd numbers; each gives 32 bits of a checksum."""


def checksums(arrays: dict[str, Any]) -> dict[str, str]:
    """{name: 16 hex digits} of the contents of arrays, one after the other, so that little is on the device at a time.

    Each word is mixed with its position by a bijection, so that any change of one word, and with a chance of
    1 - 2^-64 any other change, is seen. The sums are of integers: no order of adding changes them.
    """
    found = {name: jax.device_get(_sum(_on_device(array))) for name, array in arrays.items()}
    return {name: "".join(f"{part:08x}" for part in parts.tolist()) for name, parts in found.items()}


def _on_device(array: Any) -> Any:
    if isinstance(array, jax.Array) and array.sharding.memory_kind == "pinned_host":
        return jax.device_put(array, array.sharding.with_memory_kind("device"))
    return array


@jax.jit
def _sum(array: Any) -> jax.Array:
    """uint32 (2,)."""
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(array, _WORDS[array.dtype.itemsize]).astype(jnp.uint32)
    position = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        position = position * np.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.stack([jnp.sum(_mixed(words, position * np.uint32(seed)), dtype=jnp.uint32) for seed in _SEEDS])


def _mixed(words: jax.Array, places: jax.Array) -> jax.Array:
    """MurmurHash3's finalizer of each word and its place, uint32: a bijection of the word at any place."""
    x = words ^ places
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(16))
