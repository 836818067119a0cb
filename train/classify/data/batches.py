"""Makes batches of tokenized texts and their labels, in a few fixed shapes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from train.classify.data.tokens import Tokens
from train.data.bucketing import ALL, Places, PlannedBatch, lay_out


class Batch(NamedTuple):
    """A batch of B rows with T tokens, as numpy arrays.

    Attributes:
      inputs: {input_ids, attention_mask[, token_type_ids]}, int32 (B, T).
      labels: (B, ...), in the dtype that `make_batch` was given.
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
    """Makes a planned batch with its labels.

    Its arrays have `batch_size` rows of `planned.length` tokens. Rows that the plan lacks are fillers: they repeat the
    batch's first row, with weight 0 and -1 in `rows`. Padding is `pad_id` in `input_ids` and 0 in the other inputs;
    `token_type_ids` is among them if `tokens` has them.

    Args:
      tokens: of all rows of the split.
      labels: (n, ...), of all rows of the split, in their order.
      places: only the rows at these places of the batch, an int array or a slice; all by default.

    Raises:
      ValueError: a row is longer than `planned.length`, or there are more rows than `batch_size`.
    """
    rows, mask, flat, real = lay_out(planned, tokens.lengths, tokens.offsets, batch_size, places)
    inputs = {
        "input_ids": np.where(mask, tokens.ids[flat], pad_id).astype(np.int32),
        "attention_mask": mask.astype(np.int32),
    }
    if tokens.token_type_ids is not None:
        inputs["token_type_ids"] = np.where(mask, tokens.token_type_ids[flat], 0).astype(np.int32)
    return Batch(inputs, labels[rows], real.astype(np.float32), np.where(real, rows, -1).astype(np.int32))
