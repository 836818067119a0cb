"""The adapters that rows use now, selected from the bank once for many steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from jlora.bank.bank import Bank
from jlora.bank.selection import Selection, replace_selected, select
from jlora.lora.entries import LowRank

_WIDEST = 512
"""The joint rank up to which one product with all selected adapters is quicker than one with each row's own."""
_PATIENCE = 32
"""For how many steps in a row a smaller selection must be enough before it is made."""


class Chosen(NamedTuple):
    """Adapters for one step, and the place of each in them, by version."""

    adapters: Bank | Selection
    places: Mapping[int, int]


class ActiveAdapters:
    """The selection that the steps of all rows share. Methods are called from the engine's thread."""

    def __init__(self) -> None:
        self._selection: Selection | None = None
        self._versions: list[int | None] = []
        self._steps_too_large = 0

    def choose(self, bank: Bank, slots: Mapping[int, int], rows: int) -> Chosen:
        """Returns adapters that include those of the rows, in a size that is compiled for this number of rows.

        Args:
          slots: {version of an adapter: its slot in the bank}. A version that has been selected is not read again.
          rows: for how many rows the step is compiled.
        """
        counts = selection_sizes(bank, rows)
        count = next((size for size in counts if size >= len(slots)), None)
        if count is None:
            return Chosen(bank, slots)
        if self._selection is None or not self._fits(len(slots), count, counts):
            self._select(bank, slots, count)
        else:
            self._replace(bank, slots)
        assert self._selection is not None
        return Chosen(self._selection, {version: self._versions.index(version) for version in slots})

    def _fits(self, needed: int, count: int, counts: tuple[int, ...]) -> bool:
        """Returns whether the selection has a size that is compiled, and has not been too large for a while."""
        held = len(self._versions)
        self._steps_too_large = self._steps_too_large + 1 if count < held else 0
        return held in counts and needed <= held and self._steps_too_large < _PATIENCE

    def _select(self, bank: Bank, slots: Mapping[int, int], count: int) -> None:
        places = np.full(count, -1, np.int32)
        places[: len(slots)] = list(slots.values())
        self._selection = None  # before the new one is made, so that there is never room needed for both
        self._selection = select_slots(bank, places)
        self._versions = [*slots, *[None] * (count - len(slots))]
        self._steps_too_large = 0

    def _replace(self, bank: Bank, slots: Mapping[int, int]) -> None:
        free = [place for place, version in enumerate(self._versions) if version not in slots]
        for version, slot in slots.items():
            if version not in self._versions:
                place = free.pop(0)
                self._selection = replace_place(self._selection, np.int32(place), bank, np.int32(slot))
                self._versions[place] = version


def selection_sizes(bank: Bank, rows: int) -> tuple[int, ...]:
    """Returns how many adapters may be selected for a step of this number of rows, ascending; () for none.

    More than these are gathered from the bank, row by row.
    """
    sizes = {rows} if rows < 16 else {rows // 4, rows // 2, rows}
    ranks = [entry.scale.shape[-1] for entry in bank.entries.values() if isinstance(entry, LowRank)]
    return tuple(sorted(size for size in sizes if size * max(ranks, default=0) <= _WIDEST))


select_slots = jax.jit(select)
replace_place = jax.jit(replace_selected, donate_argnums=0)
