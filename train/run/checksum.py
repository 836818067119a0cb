"""Computes checksums of arrays where they are: the same result on the host, on one device and on any mesh."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}
_SEEDS = (0x9E3779B1, 0x85EBCA6B)
"""Odd numbers; each produces 32 bits of a checksum."""
_AT_ONCE = 2**15
"""How many words of a host array are mixed at a time: few enough to stay, with their results, in a core's cache."""


def checksums(arrays: dict[str, Any]) -> dict[str, str]:
    """Returns {name: 16 hex digits} of the arrays' contents, computed one by one to save device memory.

    Equal contents give equal digits. Arrays may be numpy's or on devices, also split over several; the result is the
    same. Each word is mixed with its position by a bijection. So every change of one word is detected, and any other
    change with probability 1 - 2^-64. The sums are of integers, so they do not depend on the order of addition. The
    shape, and a type of the same width, do not count.
    """
    found = {
        name: _sum_on_host(array) if _is_on_host(array) else jax.device_get(_sum(_on_device(array)))
        for name, array in arrays.items()
    }
    return {name: "".join(f"{part:08x}" for part in parts.tolist()) for name, parts in found.items()}


def _on_device(array: Any) -> Any:
    if isinstance(array, jax.Array) and array.sharding.memory_kind == "pinned_host":
        return jax.device_put(array, array.sharding.with_memory_kind("device"))
    return array


@jax.jit
def _sum(array: Any) -> jax.Array:
    """Computes the checksum on the devices of the array, uint32 (2,)."""
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(array, _WORDS[array.dtype.itemsize]).astype(jnp.uint32)
    position = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        position = position * np.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.stack([jnp.sum(_mix(words, position * np.uint32(seed)), dtype=jnp.uint32) for seed in _SEEDS])


def _is_on_host(array: Any) -> bool:
    if not isinstance(array, jax.Array):
        return True
    return len(array.devices()) == 1 and next(iter(array.devices())).platform == "cpu"


def _sum_on_host(array: Any) -> np.ndarray:
    """Computes the same as `_sum`, uint32 (2,), with NumPy on all cores, which is faster than compiling each shape."""
    flat = np.asarray(array).reshape(-1)
    words = flat.view(_WORDS[flat.dtype.itemsize])
    with ThreadPoolExecutor() as threads:
        parts = list(threads.map(partial(_sum_of_part, words), range(0, len(words), _AT_ONCE)))
    return np.array(parts, np.uint64).reshape(-1, len(_SEEDS)).sum(0).astype(np.uint32)


def _sum_of_part(words: np.ndarray, start: int) -> np.ndarray:
    part = words[start : start + _AT_ONCE].astype(np.uint32)
    position = np.arange(start, start + len(part)).astype(np.uint32)
    sums = [_mix(part, position * np.uint32(seed)).sum(dtype=np.uint64) for seed in _SEEDS]
    return np.array(sums, np.uint64)


def _mix(words: Any, places: Any) -> Any:
    """Applies MurmurHash3's finalizer to each word and its place, uint32: a bijection of the word at any place."""
    x = words ^ places
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(16))
