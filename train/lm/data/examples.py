"""Examples: concatenated tokens, and which of them are learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from train.data.token_rows import TokenRows


class Counts(NamedTuple):
    """How many rows were read, and how many of them were changed or left out.

    Attributes:
      rows: all rows that were read.
      split, cut, dropped: rows that were too long, by how they were handled.
      unlearnt: examples that were left out because no token in them is learnt.
      straddling: rows in which a token spans both prompt and completion; it is learnt.
    """

    rows: int = 0
    split: int = 0
    cut: int = 0
    dropped: int = 0
    unlearnt: int = 0
    straddling: int = 0


@dataclass(frozen=True)
class Examples(TokenRows):
    """n examples; example i is `ids[offsets[i]:offsets[i + 1]]`.

    Attributes:
      ids: int32 (total,).
      learn: bool (total,), whether a token is learnt, that is, predicted from the tokens before it in its example. The
        first token of an example never is.
      offsets: int64 (n + 1,).
      prompts: int64 (n,), tokens before the first answer; 0 in plain text.
      counts: of the rows that the examples were made from.
    """

    ids: np.ndarray
    learn: np.ndarray
    offsets: np.ndarray
    prompts: np.ndarray
    counts: Counts

    def take(self, indices: np.ndarray) -> Examples:
        """Returns the examples at `indices`, in that order."""
        return self.parts(indices, np.zeros_like(indices), self.lengths[indices])

    def parts(self, indices: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> Examples:
        """Returns parts of the examples at `indices`: `lengths` tokens from `starts` on; all int64 (m,).

        Only a part that starts at 0 keeps the example's prompt.
        """
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = np.repeat(self.offsets[indices] + starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        learn = self.learn[places]
        learn[offsets[:-1][lengths > 0]] = False
        prompts = np.where(starts == 0, np.minimum(self.prompts[indices], lengths), 0)
        return Examples(self.ids[places], learn, offsets, prompts, self.counts)


def join(parts: Sequence[Examples]) -> Examples:
    """Joins the examples of one or more parts, in order, and adds their counts."""
    ends = np.cumsum([part.offsets[-1] for part in parts])
    offsets = [part.offsets[1:] + end - part.offsets[-1] for part, end in zip(parts, ends, strict=True)]
    return Examples(
        ids=np.concatenate([part.ids for part in parts]),
        learn=np.concatenate([part.learn for part in parts]),
        offsets=np.concatenate([np.zeros(1, np.int64), *offsets]),
        prompts=np.concatenate([part.prompts for part in parts]),
        counts=Counts(*np.sum([part.counts for part in parts], axis=0).tolist()),
    )
