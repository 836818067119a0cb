"""Rows of tokens that are laid end to end."""

from __future__ import annotations

import numpy as np


class TokenRows:
    """Row i has the tokens from `offsets[i]` to `offsets[i + 1]`, of int64 offsets (n + 1,)."""

    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int64 (n,)."""
        return np.diff(self.offsets)
