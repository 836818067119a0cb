"""Limits the length of examples: long ones are split, cut, dropped or refused, and counted."""

from __future__ import annotations

import dataclasses

import numpy as np

from jlora.errors import JloraError
from train.lm.data.examples import Examples
from train.lm.text.documents import Documents
from train.lm.text.formats import TooLong


def fit(examples: Examples, max_length: int, too_long: TooLong, documents: Documents) -> Examples:
    """Limits the examples of `documents` to `max_length` tokens, and removes those in which nothing is learnt.

    `split` makes windows of max_length tokens. Each begins with the last token of the previous one, so that every token
    except the first is predicted in exactly one window. `cut` keeps the first max_length tokens, `drop` leaves the
    example out. The result's `counts` has the number of long examples, as `split`, `cut` or `dropped`, and `unlearnt`,
    the number of parts in which nothing was learnt. The result may be empty.

    Raises:
      JloraError: `too_long` is "error" and a row is longer.
    """
    lengths = examples.lengths
    long = lengths > max_length
    if too_long == "error" and long.any():
        first = int(np.argmax(long))
        raise JloraError(
            f"{documents.where(first)}: expected at most data.max_length={max_length} tokens; found {lengths[first]:,} "
            f"({np.sum(long):,} of {len(examples):,} rows are longer). data.too_long=split, cut or drop allows them"
        )
    windows = 1 + np.maximum(lengths - 2, 0) // (max_length - 1) if too_long == "split" else np.ones_like(lengths)
    if too_long == "drop":
        windows[long] = 0
    indices = np.repeat(np.arange(len(examples)), windows)
    starts = (np.arange(len(indices)) - np.repeat(np.cumsum(windows) - windows, windows)) * (max_length - 1)
    parts = examples.parts(indices, starts, np.minimum(lengths[indices] - starts, max_length))
    learnt_before = np.concatenate([[0], np.cumsum(parts.learn)])[parts.offsets]
    learnt = np.diff(learnt_before) > 0  # whether any token of an example is learnt
    counted = {"split": "split", "cut": "cut", "drop": "dropped", "error": "dropped"}[too_long]
    counts = examples.counts._replace(unlearnt=int(np.sum(~learnt)), **{counted: int(np.sum(long))})
    return dataclasses.replace(parts.take(np.flatnonzero(learnt)), counts=counts)
