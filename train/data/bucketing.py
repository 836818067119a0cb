"""Plans batches of a few fixed shapes: rows of similar length share a batch, so that there is little padding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from train.data.random_streams import Stream, permutation

Places = np.ndarray | slice
"""Which rows of a batch: their places in it, int64 (n,)."""

ALL = slice(None)


class PlannedBatch(NamedTuple):
    """The rows of one batch.

    Attributes:
      length: the number of tokens that the rows are padded to.
      rows: int64 (up to batch_size,), their indices in the split.
    """

    length: int
    rows: np.ndarray


def bucket_lengths(
    lengths: np.ndarray,
    count: int,
    multiple: int = 8,
    limit: int | None = None,
    *,
    weights: np.ndarray | None = None,
    price: float = 0.0,
) -> tuple[int, ...]:
    """Finds the at most `count` padded lengths, ascending, that pad `lengths` (n,) with the fewest tokens.

        bucket_lengths([3, 9, 30], 2) -> (16, 32)

    Each is a multiple of `multiple`, but at most `limit` (the longest input of the model). The optimum is found by
    dynamic programming over the histogram of lengths. No rows give (). A row longer than `limit` counts as one of that
    length.

    Args:
      weights: float (n,), how often each row is computed; once by default.
      price: how many tokens each further length must save. At 0, the smallest optimal number of lengths is chosen.
    """
    rounded = -(-np.asarray(lengths) // multiple) * multiple
    sizes, places = np.unique(rounded if limit is None else np.minimum(rounded, limit), return_inverse=True)
    rows_up_to = np.concatenate([[0], np.cumsum(np.bincount(places, weights, len(sizes)))])
    # cost[j]: the fewest padded tokens of the j shortest sizes, the last bucket ending at sizes[j - 1].
    cost = np.concatenate([[0.0], np.full(len(sizes), np.inf)])
    splits: list[np.ndarray] = []
    totals: list[float] = []
    for number in range(1, 1 + min(count, len(sizes))):
        candidates = cost[:, None] + (rows_up_to[None, 1:] - rows_up_to[:, None]) * sizes[None, :]
        candidates = np.where(np.tri(len(sizes) + 1, len(sizes), -1, bool), np.inf, candidates)
        splits.append(candidates.argmin(axis=0))
        cost = np.concatenate([[np.inf], candidates.min(axis=0)])
        totals.append(cost[-1] + number * price)
    ends, end = [], len(sizes)
    for previous in reversed(splits[: 1 + int(np.argmin(totals))] if totals else []):
        ends.append(int(sizes[end - 1]))
        end = int(previous[end - 1])
    return tuple(reversed(ends))


def plan_epoch(
    lengths: np.ndarray, buckets: tuple[int, ...], batch_size: int, seed: int, epoch: int
) -> list[PlannedBatch]:
    """Plans a shuffled epoch of ceil(n / batch_size) batches with every row once; depends only on its arguments.

    All batches except the last one are full, and the full ones are shuffled. The rows left over in a bucket move to the
    next longer bucket.

    Args:
      lengths: int (n,), the rows' lengths in tokens.
      buckets: the padded lengths, ascending; a batch has the shortest one that all its rows fit into.

    Raises:
      ValueError: a row is longer than the longest bucket.
    """
    order = permutation(len(lengths), Stream.EPOCH_ROWS, seed, epoch)
    bucket_of = _bucket_of(lengths, buckets)[order]
    full: list[PlannedBatch] = []
    left = order[:0]
    for bucket, length in enumerate(buckets):
        waiting = np.concatenate([left, order[bucket_of == bucket]])
        whole = len(waiting) - len(waiting) % batch_size
        full += [PlannedBatch(length, rows) for rows in waiting[:whole].reshape(-1, batch_size)]
        left = waiting[whole:]
    shuffled = [full[index] for index in permutation(len(full), Stream.EPOCH_BATCHES, seed, epoch)]
    return shuffled + _split_into_batches(left, lengths, buckets, batch_size)


def plan_evaluation(lengths: np.ndarray, buckets: tuple[int, ...], batch_size: int) -> list[PlannedBatch]:
    """Plans batches with every row once, the shortest first, all full except the last.

    Rows of equal length keep their order; no rows give no batches.

    Args:
      lengths: int (n,), the rows' lengths in tokens.
      buckets: the padded lengths, ascending; a batch has the shortest one that all its rows fit into.

    Raises:
      ValueError: a row is longer than the longest bucket.
    """
    return _split_into_batches(np.argsort(lengths, kind="stable"), lengths, buckets, batch_size)


class Layout(NamedTuple):
    """The places of the tokens in a batch of B rows of length T.

    Attributes:
      rows: int64 (B,), each row's index in its split; copies of the first row fill an incomplete batch.
      mask: bool (B, T), true where a row has a token.
      flat: int64 (B, T), the token's index among those of all rows, 0 if there is none.
      real: bool (B,), false for a filler row.
    """

    rows: np.ndarray
    mask: np.ndarray
    flat: np.ndarray
    real: np.ndarray


def lay_out(
    planned: PlannedBatch,
    lengths: np.ndarray,
    offsets: np.ndarray,
    batch_size: int,
    places: Places = ALL,
) -> Layout:
    """Lays out a planned batch, always (batch_size, planned.length), or only its rows at `places`.

    Args:
      lengths, offsets: of all rows of the split: their lengths in tokens, int (n,), and where their tokens begin, int
        (n,) or (n + 1,).
      places: an int array or a slice of the batch's rows, fillers included; all by default.

    Raises:
      ValueError: a row is longer than the batch, there are more rows than batch_size, or there is none.
    """
    count, longest = len(planned.rows), lengths[planned.rows]
    if not 0 < count <= batch_size or longest.max() > planned.length:
        raise ValueError(f"{count} rows of {longest} tokens do not fit ({batch_size}, {planned.length})")
    rows = np.concatenate([planned.rows, np.repeat(planned.rows[:1], batch_size - count)])[places]
    columns = np.arange(planned.length)
    mask = columns < lengths[rows][:, None]
    flat = np.where(mask, offsets[rows][:, None] + columns, 0)
    return Layout(rows, mask, flat, np.arange(batch_size)[places] < count)


def first_of_each_length(plan: Iterable[PlannedBatch]) -> list[PlannedBatch]:
    """Returns the first batch of each length, in the order of the plan."""
    found: dict[int, PlannedBatch] = {}
    for planned in plan:
        found.setdefault(planned.length, planned)
    return list(found.values())


def padding_share(plan: list[PlannedBatch], lengths: np.ndarray, batch_size: int) -> float:
    """Returns the share of computed token places, filler rows included, that hold no token: 0 is perfect.

    `lengths` are those of the rows in the plan, int (n,); an empty plan gives 0.
    """
    computed = sum(batch.length for batch in plan) * batch_size
    return 1 - float(np.sum(lengths)) / computed if computed else 0.0


def _split_into_batches(
    rows: np.ndarray, lengths: np.ndarray, buckets: tuple[int, ...], batch_size: int
) -> list[PlannedBatch]:
    bucket_of = _bucket_of(lengths, buckets)
    parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return [PlannedBatch(buckets[bucket_of[part].max()], part) for part in parts]


def _bucket_of(lengths: np.ndarray, buckets: tuple[int, ...]) -> np.ndarray:
    """Returns int64 (n,): the index of the shortest bucket that each row fits into."""
    if len(lengths) and (not buckets or np.max(lengths) > buckets[-1]):
        raise ValueError(f"a row of {np.max(lengths)} tokens is longer than every bucket of {buckets}")
    return np.searchsorted(buckets, lengths)
