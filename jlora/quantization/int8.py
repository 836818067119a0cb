"""Symmetric 8-bit weights with one scale for each output, as in LLM.int8 (Dettmers et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Int8(NamedTuple):
    """A matrix, or a stack of matrices on leading axes.

    Attributes:
      codes: (*stack, outputs, inputs) int8, from -127 to 127.
      scales: (*stack, outputs) float32, the largest absolute value of each row.
    """

    codes: jax.Array
    scales: jax.Array

    @property
    def stack(self) -> tuple[int, ...]:
        """The sizes of the leading axes."""
        return self.scales.shape[:-1]

    def numbers(self, rows: int, columns: int) -> jax.Array:
        """Dequantizes to (*stack, rows, columns), float32."""
        return decode(self)

    def shardings(self, fit: Callable[[Any, Any], Any], stack: tuple[Any, ...], row: Any, column: Any) -> Int8:
        """Returns `fit(names, shape)` for each array, for matrices that are split over these axes of a mesh."""
        return Int8(fit((*stack, row, column), self.codes.shape), fit((*stack, row), self.scales.shape))


def encode(matrix: jax.Array) -> Int8:
    """Quantizes a matrix (outputs, inputs), float32: a row is rounded to multiples of its largest absolute value / 127.

    Halves are rounded to even. A row of zeros has the scale 0.
    """
    scales = jnp.abs(matrix).max(-1)
    steps = 127 / jnp.where(scales > 0, scales, 1)
    return Int8(jnp.round(matrix * steps[:, None]).astype(jnp.int8), scales)


def decode(int8: Int8) -> jax.Array:
    """Dequantizes to matrices (*stack, outputs, inputs), float32: code * its row's scale / 127."""
    return int8.codes.astype(jnp.float32) * int8.scales[..., None] * jnp.float32(1 / 127)
