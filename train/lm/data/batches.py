"""Batches of token rows: few fixed shapes, the next token to each, and a weight where it is learnt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from train.data.bucketing import PlannedBatch, bucket_lengths, lay_out
from train.lm.config import LMConfig
from train.lm.data.examples import Examples
from train.lm.data.packing import Packed
from train.run.lengths import lengths_of_run


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


def longest_batch(config: LMConfig, rows: Mapping[str, Examples | Packed]) -> int:
    """The last of `row_lengths`, which depends on no model."""
    packed = [part.size for part in rows.values() if isinstance(part, Packed)]
    longest = np.array([part.lengths.max() for part in rows.values()])
    return max(packed) if packed else bucket_lengths(longest, 1, limit=config.data.max_length)[-1]


def row_lengths(
    config: LMConfig, rows: Mapping[str, Examples | Packed], base: Any, *, resume: bool = False
) -> tuple[int, ...]:
    """The padded lengths of batches: one where rows are packed, else those of `train.run.lengths.lengths_of_run`."""
    packed = [part.size for part in rows.values() if isinstance(part, Packed)]
    if packed:
        return (max(packed),)
    return lengths_of_run(config, {name: part.lengths for name, part in rows.items()}, base, resume=resume)


def make_batch(
    rows: Examples | Packed,
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
