"""Batches of tokenized texts and their labels, in few fixed shapes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from train.classify.data.tokens import Tokens
from train.data.bucketing import PlannedBatch, lay_out


class Batch(NamedTuple):
    """One batch of B rows and T tokens, all of them numpy arrays.

    inputs: {input_ids, attention_mask[, token_type_ids]}, int32 (B, T).
    labels: (B, ...), dtype as given to `make_batch`.
    weights: float32 (B,), 1, and 0 for a filler row.
    rows: int32 (B,), the row's index in its split, -1 for a filler row.
    """

    inputs: dict[str, np.ndarray]
    labels: np.ndarray
    weights: np.ndarray
    rows: np.ndarray


def make_batch(
    tokens: Tokens,
    labels: np.ndarray,
    planned: PlannedBatch,
    batch_size: int,
    pad_id: int,
    places: np.ndarray | slice = slice(None),
) -> Batch:
    """The arrays of a planned batch, always (batch_size, planned.length): copies of its first row fill it up.

    Args:
      places: the rows of it to make, int64; all by default.

    Raises ValueError where a row is longer than the batch or there are more rows than batch_size.
    """
    rows, mask, flat, real = lay_out(planned, tokens.lengths, tokens.offsets, batch_size, places)
    inputs = {
        "input_ids": np.where(mask, tokens.ids[flat], pad_id).astype(np.int32),
        "attention_mask": mask.astype(np.int32),
    }
    if tokens.token_type_ids is not None:
        inputs["token_type_ids"] = np.where(mask, tokens.token_type_ids[flat], 0).astype(np.int32)
    return Batch(inputs, labels[rows], real.astype(np.float32), np.where(real, rows, -1).astype(np.int32))
