"""NF4 with double quantization (Dettmers et al. 2023); gives the same numbers as bitsandbytes.

A block of 64 numbers is stored as its largest absolute value (the scale) and, for each number, the nearest of 16
quantiles of the normal distribution. The scales, minus their mean, are stored in blocks of 256 with 8 bits each: 0.516
bytes per number in all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 64
"""How many numbers share a scale."""

_SCALES = 256
"""How many scales share one step."""

_QUANTILES = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip


class NF4(NamedTuple):
    """A vector, a matrix whose rows are complete blocks, or a stack of these on leading axes; `encode` makes one.

    Attributes:
      codes: (*stack, [rows,] size / 2, rounded up) uint8, indices of the table of quantiles, two per byte, the upper
        half first.
      scales: (*stack, [rows,] size / 64, rounded up) uint8, the largest absolute value of each block minus `mean`, as
        an index of the table `dynamic_map`.
      steps: (*stack, blocks of all rows / 256, rounded up) float32, factors of that table.
      mean: (*stack,) float32, of the blocks' largest absolute values.
    """

    codes: jax.Array
    scales: jax.Array
    steps: jax.Array
    mean: jax.Array

    @property
    def stack(self) -> tuple[int, ...]:
        """The sizes of the leading axes."""
        return self.mean.shape

    def numbers(self, rows: int, columns: int) -> jax.Array:
        """Dequantizes to float32 (*stack, rows, columns), or (*stack, rows * columns) if blocks do not fill rows."""
        return decode(self, rows * columns if columns % BLOCK else columns)

    def shardings(self, fit: Callable[[Any, Any], Any], stack: tuple[Any, ...], row: Any, column: Any) -> NF4:
        """Returns `fit(names, shape)` for each array, for matrices that are split over these axes of a mesh."""
        names = (row, column) if self.scales.ndim == len(stack) + 2 else (None,)
        blocks = fit((*stack, *names), self.scales.shape)
        return NF4(blocks, blocks, fit((*stack, None), self.steps.shape), fit(stack, self.mean.shape))


def encode(numbers: jax.Array) -> NF4:
    """Quantizes float32 (size,), whose last block may be shorter, or (rows, size) in complete blocks of 64 numbers."""
    rows = numbers.shape[:-1]
    blocks = _blocks(numbers.reshape(-1), BLOCK)
    largest = jnp.abs(blocks).max(-1)
    codes = _nearest(blocks * _inverse(largest)[:, None], _QUANTILES)
    codes = codes.reshape(-1)[: numbers.size + numbers.size % 2].reshape(-1, 2)
    mean = largest.mean()
    rests = _blocks(largest - mean, _SCALES)
    steps = jnp.abs(rests).max(-1)
    scales = _nearest(rests * _inverse(steps)[:, None], dynamic_map()).reshape(-1)[: largest.size]
    packed = codes[:, 0] << 4 | codes[:, 1]
    return NF4(packed.reshape(*rows, -1), scales.reshape(*rows, -1), steps, mean)


def decode(nf4: NF4, size: int) -> jax.Array:
    """Dequantizes to (*stack, [rows,] size), float32; `size` is how many numbers the vector, or each row, had."""
    stack, places = nf4.mean.shape, nf4.scales.shape
    steps = nf4.steps[..., _count(places[len(stack) :]) // _SCALES]
    mean = jnp.expand_dims(nf4.mean, tuple(range(len(stack), len(places))))
    largest = jnp.asarray(dynamic_map())[nf4.scales] * steps + mean
    codes = jnp.stack([nf4.codes >> 4, nf4.codes & 15], -1).reshape(*places[:-1], -1)
    numbers = _pad_to_multiple(jnp.asarray(_QUANTILES)[codes], BLOCK).reshape(*places, BLOCK) * largest[..., None]
    return numbers.reshape(*places[:-1], -1)[..., :size]


def dynamic_map() -> np.ndarray:
    """Returns the 256 numbers of a dynamic 8-bit float (Dettmers 2016) in ascending order, float32.

    They are 0, 1 and, with both signs, the centers of 2^i equal parts of [0.1, 1] times 10^(i - 6), for i from 0 to 6.
    """
    numbers = [np.array([0.0, 1.0], np.float32)]
    for i in range(7):
        edges = _edges(2**i)
        middles = (edges[:-1] + edges[1:]) / np.float32(2) * np.float32(10.0 ** (i - 6))
        numbers += [middles, -middles]
    return np.sort(np.concatenate(numbers))


def _edges(parts: int) -> np.ndarray:
    """Returns the edges of equal parts of [0.1, 1], each computed from the nearer end, so that it rounds as PyTorch."""
    start, count = np.float32(0.1), np.arange(parts + 1)
    step = np.float64((np.float32(1) - start) / np.float32(parts))
    return np.where(count < (parts + 1) // 2, start + step * count, 1 - step * (parts - count)).astype(np.float32)


def _nearest(numbers: jax.Array, table: np.ndarray) -> jax.Array:
    """Returns the indices, uint8, of the nearest entries of an ascending table; the lower one if halfway."""
    middles = (table[:-1] + table[1:]) / np.float32(2)
    method = "compare_all" if table.size == _QUANTILES.size else "scan"  # few entries: XLA fuses it into one pass
    return jnp.searchsorted(jnp.asarray(middles), numbers, method=method).astype(jnp.uint8)


def _inverse(largest: jax.Array) -> jax.Array:
    """Returns 1 / largest, and 0 for blocks of zeros."""
    return jnp.where(largest < np.finfo(np.float32).tiny, 0, 1 / largest)


def _blocks(numbers: jax.Array, size: int) -> jax.Array:
    """Splits into blocks (count, size); the last one is padded with zeros."""
    return _pad_to_multiple(numbers, size).reshape(-1, size)


def _count(shape: tuple[int, ...]) -> jax.Array:
    """Returns 0, 1, 2, ... in an array (size,) or (rows, size), int32; each device computes only its part."""
    numbers = jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
    return numbers if len(shape) == 1 else numbers + shape[1] * jax.lax.broadcasted_iota(jnp.int32, shape, 0)


def _pad_to_multiple(numbers: jax.Array, size: int) -> jax.Array:
    """Appends zeros on the last axis, up to a multiple of `size`."""
    return jnp.pad(numbers, [*[(0, 0)] * (numbers.ndim - 1), (0, -numbers.shape[-1] % size)])
