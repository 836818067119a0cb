"""Batches of token rows: few fixed shapes, the next token to each, and a weight where it is learnt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from train.data.bucketing import ALL, Places, PlannedBatch, lay_out
from train.lm.data.examples import Examples
from train.lm.data.packing import Packed


class Batch(NamedTuple):
    """One batch of B rows and T tokens, all of them numpy arrays.

    inputs: {input_ids, attention_mask}, of packed rows {segment_ids, position_ids} too; int32 (B, T). Padding is on the
    right: 0, and `pad_id` in input_ids.
    targets: int32 (B, T), the next token, 0 where it is not learnt.
    weights: float32 (B, T), 1 where the next token is learnt, else 0; 0 everywhere in a filler row.
    """

    inputs: dict[str, np.ndarray]
    targets: np.ndarray
    weights: np.ndarray


def packed_width(rows: Mapping[str, Examples | Packed]) -> int | None:
    """What all rows are padded to where they are packed; None where they are not."""
    return max((part.size for part in rows.values() if isinstance(part, Packed)), default=None)


def make_batch(
    rows: Examples | Packed, planned: PlannedBatch, batch_size: int, pad_id: int, places: Places = ALL
) -> Batch:
    """A planned batch with its targets; `lay_out` says what shape it has, what `places` are and what is raised."""
    _, mask, flat, real = lay_out(planned, rows.lengths, rows.offsets, batch_size, places)

    def padded(values: np.ndarray, padding: int = 0) -> np.ndarray:
        return np.where(mask, values[flat], padding).astype(np.int32)

    inputs = {"input_ids": padded(rows.ids, pad_id), "attention_mask": mask.astype(np.int32)}
    if isinstance(rows, Packed):
        inputs |= {"segment_ids": padded(rows.segment_ids), "position_ids": padded(rows.position_ids)}
    # No first token of an example is learnt: no target is of another example than its input.
    learnt = _next(padded(rows.learn)) * real[:, None]
    return Batch(inputs, _next(inputs["input_ids"]) * learnt, learnt.astype(np.float32))


def _next(values: np.ndarray) -> np.ndarray:
    """(B, T): each row moved one to the left, 0 last."""
    return np.concatenate([values[:, 1:], np.zeros_like(values[:, :1])], axis=1)
