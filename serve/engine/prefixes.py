"""Keeps the keys and values of prompts, so that a prompt that begins like an earlier one is read from there on."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence

from serve.engine.prefill_and_decode import KeyValues

FOREVER = 1 << 30
"""A place beyond the end of every prompt: where the base alone reads, no adapter ever begins."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """Who read the tokens of a prompt: the base up to the place `start`, an adapter from there on.

    Attributes:
      adapter: the number of an adapter's version; None is the base alone, with `start` FOREVER.
    """

    adapter: int | None
    start: int

    def shared(self, other: Reader) -> int:
        """Returns from which place on the two may read equal tokens differently; FOREVER if they are equal."""
        if self == other:
            return FOREVER
        return min(self.start, other.start)


class Prefixes:
    """The keys and values of the prompts that were read last, at most `limit` of them."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[tuple[Reader, tuple[int, ...]], KeyValues] = OrderedDict()

    def keep(self, reader: Reader, ids: Sequence[int], memory: KeyValues) -> None:
        """Keeps the memory of a prompt; where there are more than `limit`, the least recently used is forgotten."""
        if self._limit:
            self._kept[reader, tuple(ids)] = memory
            self._kept.move_to_end((reader, tuple(ids)))
            if len(self._kept) > self._limit:
                self._kept.popitem(last=False)

    def find(self, reader: Reader, ids: Sequence[int]) -> tuple[int, KeyValues | None]:
        """Returns (how many tokens at the beginning of `ids` are known, the memory that holds them)."""
        best, found = (0, 0), None
        for key, memory in self._kept.items():
            same = min(reader.shared(key[0]), _common(ids, key[1]))
            if (
                same and (same, -len(key[1])) > best
            ):  # of equal ones the shortest prompt's, which needs the least memory
                best, found = (same, -len(key[1])), (key, memory)
        if found is None:
            return 0, None
        self._kept.move_to_end(found[0])
        return best[0], found[1]

    def forget(self, adapter: int) -> None:
        """Forgets what an adapter has read."""
        for key in [key for key in self._kept if key[0].adapter == adapter]:
            del self._kept[key]


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Returns how many elements at the beginning are equal."""
    for place, (x, y) in enumerate(zip(first, second, strict=False)):
        if x != y:
            return place
    return min(len(first), len(second))
