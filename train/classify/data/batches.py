"""Batches of tokenized texts and their labels, in few fixed shapes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from train.classify.data.tokens import Tokens
from train.data.bucketing import ALL, Places, PlannedBatch, lay_out


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
    tokens: Tokens, labels: np.ndarray, planned: PlannedBatch, batch_size: int, pad_id: int, places: Places = ALL
) -> Batch:
    """A planned batch with its labels; `lay_out` says what shape it has, what `places` are and what is raised."""
    rows, mask, flat, real = lay_out(planned, tokens.lengths, tokens.offsets, batch_size, places)
    inputs = {
        "input_ids": np.where(mask, tokens.ids[flat], pad_id).astype(np.int32),
        "attention_mask": mask.astype(np.int32),
    }
    if tokens.token_type_ids is not None:
        inputs["token_type_ids"] = np.where(mask, tokens.token_type_ids[flat], 0).astype(np.int32)
    return Batch(inputs, labels[rows], real.astype(np.float32), np.where(real, rows, -1).astype(np.int32))
