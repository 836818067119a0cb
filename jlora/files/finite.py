"""Checks that numbers from a file are finite: one NaN in a weight makes every loss NaN, long after it was read."""

from __future__ import annotations

import numpy as np

from jlora.errors import FileError

_AT_ONCE = 2**16
"""How many numbers are checked at a time: few enough to stay in the CPU's cache and take almost no memory."""


def require_finite(value: np.ndarray, where: str) -> None:
    """Raises FileError if a number in `value`, of any shape and floating point dtype, is NaN or infinite.

    Args:
      where: the file and the key, for the message.
    """
    numbers = np.ascontiguousarray(value).reshape(-1)
    if not all(_is_finite(part) for part in _parts(numbers)):
        wrong = sum(int(np.sum(~np.isfinite(part))) for part in _parts(numbers))
        raise FileError(
            f"{where}: expected finite numbers, found {wrong} of {numbers.size} NaN or infinite:"
            " the training diverged, or the file is damaged; take an earlier checkpoint"
        )


def _parts(numbers: np.ndarray) -> list[np.ndarray]:
    return [numbers[start : start + _AT_ONCE] for start in range(0, len(numbers), _AT_ONCE)]


def _is_finite(numbers: np.ndarray) -> bool:
    if numbers.dtype.itemsize > 2:
        return bool(np.isfinite(numbers).all())
    # numpy is slow on 16 bits. Without the sign bit, NaN and infinity are the bit patterns from infinity's upwards.
    infinity = int(np.array(np.inf, numbers.dtype).view(np.uint16)) << 1
    return int((numbers.view(np.uint16) << 1).max()) < infinity
