"""Packs several complete examples, which do not see each other, into rows of one length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from train.data.token_rows import TokenRows
from train.lm.data.examples import Examples


@dataclass(frozen=True)
class Packed(TokenRows):
    """n rows of at most `size` tokens; row i is `ids[offsets[i]:offsets[i + 1]]`.

    Attributes:
      ids: int32 (total,).
      learn: bool (total,), whether a token is learnt; the first one of an example never is.
      offsets: int64 (n + 1,).
      segment_ids: int32 (total,), a token's example within its row, from 1.
      position_ids: int32 (total,), a token's place in its example, from 0.
      size: tokens that a row has room for.
    """

    ids: np.ndarray
    learn: np.ndarray
    offsets: np.ndarray
    segment_ids: np.ndarray
    position_ids: np.ndarray
    size: int

    @property
    def padding_share(self) -> float:
        """The share of the rows' places that hold no token."""
        return 1 - len(self.ids) / (len(self) * self.size)


def pack(examples: Examples, size: int) -> Packed:
    """Packs every example once, in as few rows of `size` tokens as best-fit decreasing finds; none may be longer.

    The rows and their order are those of `best_fit(examples.lengths, size)`.
    """
    rows = best_fit(examples.lengths, size)
    counts = np.array([len(row) for row in rows])
    packed = examples.take(np.array([index for row in rows for index in row], np.int64))
    ends = packed.offsets[np.concatenate([[0], np.cumsum(counts)])]
    number = np.arange(len(packed)) - np.repeat(np.cumsum(counts) - counts, counts)
    return Packed(
        ids=packed.ids,
        learn=packed.learn,
        offsets=ends,
        segment_ids=np.repeat(number + 1, packed.lengths).astype(np.int32),
        position_ids=(np.arange(len(packed.ids)) - np.repeat(packed.offsets[:-1], packed.lengths)).astype(np.int32),
        size=size,
    )


def best_fit(lengths: np.ndarray, size: int) -> list[list[int]]:
    """Assigns `lengths` (n,) to rows with a sum of at most `size`, by best-fit decreasing; returns rows of indices.

    The longest are assigned first, each to the row in which the least room remains. No length may exceed `size`.

        best_fit([3, 2, 2, 1], 4) -> [[0, 3], [1, 2]]
    """
    rows: list[list[int]] = []
    rows_with: list[list[int]] = [[] for _ in range(size + 1)]  # {room left: rows}
    there = 0  # bit b: some row has room for b more tokens
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        if fitting := there >> length:
            room = length + (fitting & -fitting).bit_length() - 1
            row = rows_with[room].pop()
            there ^= (not rows_with[room]) << room
        else:
            room, row = size, len(rows)
            rows.append([])
        rows[row].append(index)
        rows_with[room - length].append(row)
        there |= 1 << (room - length)
    return rows
