"""Makes batches of token rows in a few fixed shapes, with the next token as target and a weight for each token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from train.data.bucketing import ALL, Places, PlannedBatch, lay_out
from train.lm.data.examples import Examples
from train.lm.data.packing import Packed


class Batch(NamedTuple):
    """A batch of B rows with T tokens, as numpy arrays.

    Attributes:
      inputs: {input_ids, attention_mask}, and for packed rows {segment_ids, position_ids}; int32 (B, T). Padding is on
        the right: 0, and `pad_id` in input_ids.
      targets: int32 (B, T), the next token, 0 if it is not learnt.
      weights: float32 (B, T), 1 if the next token is learnt, else 0; all 0 in a filler row.
    """

    inputs: dict[str, np.ndarray]
    targets: np.ndarray
    weights: np.ndarray


def width_of_packed(rows: Mapping[str, Examples | Packed]) -> int | None:
    """Returns the largest `size` of the splits that are packed, the length that all rows are padded to, else None.

    `rows` is {split: its rows}.
    """
    return max((part.size for part in rows.values() if isinstance(part, Packed)), default=None)


def make_batch(
    rows: Examples | Packed, planned: PlannedBatch, batch_size: int, pad_id: int, places: Places = ALL
) -> Batch:
    """Makes a planned batch with its targets: arrays of `batch_size` rows of `planned.length` tokens.

    A target is the next token of the row, with weight 1 if that token is learnt; others are 0 with weight 0. Rows that
    the plan lacks are fillers: they repeat the batch's first row, with targets and weights 0. Padding is `pad_id` in
    `input_ids`, 0 in the other inputs; packed rows have `segment_ids` and `position_ids` too.

    Args:
      rows: all rows of the split.
      places: only the rows at these places of the batch, an int array or a slice; all by default.

    Raises:
      ValueError: a row is longer than `planned.length`, or there are more rows than `batch_size`.
    """
    _, mask, flat, real = lay_out(planned, rows.lengths, rows.offsets, batch_size, places)

    def pad(values: np.ndarray, padding: int = 0) -> np.ndarray:
        return np.where(mask, values[flat], padding).astype(np.int32)

    inputs = {"input_ids": pad(rows.ids, pad_id), "attention_mask": mask.astype(np.int32)}
    if isinstance(rows, Packed):
        inputs |= {"segment_ids": pad(rows.segment_ids), "position_ids": pad(rows.position_ids)}
    # The first token of an example is never learnt, so input and target always belong to the same example.
    learnt = _next(pad(rows.learn)) * real[:, None]
    return Batch(inputs, _next(inputs["input_ids"]) * learnt, learnt.astype(np.float32))


def _next(values: np.ndarray) -> np.ndarray:
    """Shifts each row of (B, T) by one to the left, with 0 at the end."""
    return np.concatenate([values[:, 1:], np.zeros_like(values[:, :1])], axis=1)
