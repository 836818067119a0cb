"""Rows of tokens that are stored concatenated."""

from __future__ import annotations

import numpy as np


class TokenRows:
    """Base class of n concatenated rows: row i has the tokens from `offsets[i]` to `offsets[i + 1]`, int64 (n + 1,)."""

    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each row, int64 (n,)."""
        return np.diff(self.offsets)
