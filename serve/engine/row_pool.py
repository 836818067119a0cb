"""The rows of an engine: the sizes that programs are compiled for, and the memory of all rows."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jlora.bank.bank import Bank
from jlora.bank.selection import Selection
from serve.engine.active_adapters import ActiveAdapters, replace_place, select_slots, selection_sizes
from serve.engine.answer import Answer
from serve.engine.prefill_and_decode import KeyValues, NewTokens, empty_memory, extend, insert, repack
from serve.engine.requests import CompletionRequest
from serve.engine.sampling import Choice, Drawn

logger = logging.getLogger(__name__)

_PIECES = (256, 64, 32)
"""The lengths in which prompts are read, padded; the largest that is not mostly padding is taken."""
_PATIENCE = 32
"""For how many steps in a row a smaller size must be enough before the rows are moved into it."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes that programs are compiled for.

    Attributes:
      rows: ascending; the last is how many answers get tokens at the same time.
      places: ascending; tokens that a row has room for. The last has room for the context and padding.
    """

    rows: tuple[int, ...]
    places: tuple[int, ...]

    @property
    def most_rows(self) -> int:
        """How many answers there may be at the same time."""
        return self.rows[-1]


def make_sizes(rows: int, context: int) -> Sizes:
    """Returns sizes in powers of four: 1, 4, 16, ... up to `rows` rows; 256, 1024, ... up to `context` places.

    Places are rounded up to a multiple of 64, and 64 are added for the padding of a prompt's last piece.
    """
    places = sorted({min(256 * 4**i, context) for i in range(8)})
    return Sizes(tuple(sorted({min(4**i, rows) for i in range(8)})), tuple(_round_up(n, 64) + 64 for n in places))


def needed_places(prompt: int, answer: int) -> int:
    """Returns how many places a prompt and an answer of these numbers of tokens need, with the padding of pieces."""
    return max(prompt + answer, prompt + _PIECES[-1])


class ReadPiece(NamedTuple):
    """A memory with one more piece of a prompt, and how many tokens were read."""

    memory: KeyValues
    read: int


class RowPool:
    """The memory of all rows that get tokens, in the smallest size that holds them."""

    def __init__(self, model: Any, base: Any, sizes: Sizes, *, is_unstacked: bool) -> None:
        """`is_unstacked`: whether the base is one of `jlora.models.unstack_layers`."""
        self.sizes = sizes
        self._model, self._base, self._is_unstacked = model, base, is_unstacked
        self._memory = self._empty(sizes.rows[0], sizes.places[0])
        self._active = ActiveAdapters()
        self._steps_too_large = 0

    def _empty(self, rows: int, places: int) -> KeyValues:
        return empty_memory(self._model, rows, places, is_unstacked=self._is_unstacked)

    def warm_up(self, bank: Bank) -> None:
        """Compiles every program that a request may need."""
        nobody = _choice([], 1)
        selections = {rows: _selections(bank, rows) for rows in self.sizes.rows}
        for number, places in enumerate(self.sizes.places, 1):
            logger.info("compiling programs for %d tokens, %d of %d", places, number, len(self.sizes.places))
            alone = self._empty(1, places)
            for width in _PIECES:
                if width <= places:
                    _, alone = extend(self._model, self._base, bank, alone, _tokens(1, width), nobody)
            for rows in self.sizes.rows:
                memory = self._empty(rows, places)
                for adapters in selections[rows]:
                    _, memory = extend(self._model, self._base, adapters, memory, _tokens(rows, 1), _choice([], rows))
                for smaller in self.sizes.places[: self.sizes.places.index(places) + 1]:
                    memory = insert(memory, np.int32(0), self._empty(1, smaller))
                for other in self._neighbours(rows, places):
                    jax.block_until_ready(repack(memory, np.zeros(other[0], np.int32), *other))
            for smaller in self.sizes.places[: self.sizes.places.index(places)]:
                _cut(self._empty(1, places), smaller)

    def new_memory(self, prompt: int, answer: int, known: KeyValues | None) -> KeyValues:
        """Makes the memory of one prompt; `known` is an earlier one's, which begins alike and may be longer."""
        places = next(size for size in self.sizes.places if size >= needed_places(prompt, answer))
        if known is None:
            return self._empty(1, places)
        if known.places > places:
            return _cut(known, places)
        return insert(self._empty(1, places), np.int32(0), known)

    def read(
        self, bank: Bank, memory: KeyValues, ids: Sequence[int], start: int, slot: int, request: CompletionRequest
    ) -> tuple[ReadPiece, Drawn]:
        """Reads one piece of the tokens `ids`, at most 256; `start` tokens are in the memory already.

        The token drawn is the one after the piece.
        """
        room = memory.places - start
        width = next(w for w in _PIECES if w <= room and (len(ids) > w // 2 or w == _PIECES[-1]))
        count = min(len(ids), width)
        reach = len(request.ids) + request.max_tokens
        tokens = _tokens(1, width)
        tokens.ids[0, :count] = ids[:count]
        tokens = tokens._replace(real=_ints(count), start=_ints(start), reach=_ints(reach), slot=_ints(slot))
        drawn, memory = extend(self._model, self._base, bank, memory, tokens, _choice([(0, request, 0)], 1))
        return ReadPiece(memory, count), jax.device_get(drawn)

    def place(self, memory: KeyValues, row: int) -> None:
        """Writes the memory of a prompt into a row, after growing as much as that needs."""
        while self._memory.rows <= row:
            self._move(range(self._memory.rows), _next(self.sizes.rows, self._memory.rows), self._memory.places)
        while self._memory.places < memory.places:
            self._move(range(self._memory.rows), self._memory.rows, _next(self.sizes.places, self._memory.places))
        self._memory = insert(self._memory, np.int32(row), memory)
        self._steps_too_large = 0

    def clear(self, row: int) -> None:
        """Writes zeros over a row: NaN in it would spread to whoever has it next, even from places that are masked."""
        self._memory = insert(self._memory, np.int32(row), self._empty(1, self._memory.places))

    def shrink(self, needed: Mapping[int, int]) -> dict[int, int]:
        """Moves the rows into a smaller size, one of rows or places at a time, if it has been enough for a while.

        Args:
          needed: {row of an answer: the places that it needs}.

        Returns:
          {row of an answer: its row now}.
        """
        same = {row: row for row in needed}
        rows, places = self._memory.rows, self._memory.places
        fewer, shorter = _before(self.sizes.rows, rows), _before(self.sizes.places, places)
        if fewer < rows and len(needed) <= fewer:
            target = fewer, places
        elif shorter < places and max(needed.values(), default=0) <= shorter:
            target = rows, shorter
        else:
            self._steps_too_large = 0
            return same
        self._steps_too_large += 1
        if self._steps_too_large < _PATIENCE:
            return same
        self._steps_too_large = 0
        order = sorted(needed)
        self._move(order, *target)
        return {row: place for place, row in enumerate(order)}

    def step(self, bank: Bank, answers: Mapping[int, Answer]) -> Drawn:
        """Makes the next token of each row, (rows,); rows without an answer have a token without meaning."""
        rows = self._memory.rows
        tokens = _tokens(rows, 1)
        starts = {row: len(answer.request.ids) + answer.drawn - 1 for row, answer in answers.items()}
        readers = {row: answer.adapter_at(starts[row]) for row, answer in answers.items()}
        used = {record.version: record.place for record in readers.values() if record is not None}
        adapters, places = self._active.choose(bank, used, rows)
        for row, answer in answers.items():
            tokens.ids[row, 0], tokens.start[row] = answer.last, starts[row]
            tokens.reach[row] = len(answer.request.ids) + answer.request.max_tokens
            record = readers[row]
            tokens.slot[row] = -1 if record is None else places[record.version]
        choice = _choice([(row, answer.request, answer.drawn) for row, answer in answers.items()], rows)
        drawn, self._memory = extend(self._model, self._base, adapters, self._memory, tokens, choice)
        return jax.device_get(drawn)

    def _move(self, order: Sequence[int], rows: int, places: int) -> None:
        """Moves the rows `order` into a memory of another size, to its first rows."""
        chosen = np.zeros(rows, np.int32)
        chosen[: len(order)] = order
        self._memory = repack(self._memory, chosen, rows, places)

    def _neighbours(self, rows: int, places: int) -> list[tuple[int, int]]:
        """Returns the sizes that a memory of this size may be moved into."""
        numbers = {_next(self.sizes.rows, rows), _before(self.sizes.rows, rows)} - {rows}
        lengths = {_next(self.sizes.places, places), _before(self.sizes.places, places)} - {places}
        return [(number, places) for number in numbers] + [(rows, length) for length in lengths]


def _selections(bank: Bank, rows: int) -> list[Bank | Selection]:
    """Returns adapters of every size that a step of this number of rows may be given, and compiles how they change."""
    counts = selection_sizes(bank, rows)
    made: list[Bank | Selection] = [
        replace_place(select_slots(bank, np.full(count, -1, np.int32)), np.int32(0), bank, np.int32(-1))
        for count in counts
    ]
    return made if rows in counts else [*made, bank]


def _cut(memory: KeyValues, places: int) -> KeyValues:
    """Returns the first places of a memory of one row."""
    return repack(memory, np.zeros(1, np.int32), 1, places)


def _next(sizes: Sequence[int], size: int) -> int:
    return sizes[min(sizes.index(size) + 1, len(sizes) - 1)]


def _before(sizes: Sequence[int], size: int) -> int:
    return sizes[max(sizes.index(size) - 1, 0)]


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _ints(*numbers: int) -> np.ndarray:
    return np.asarray(numbers, np.int32)


def _tokens(rows: int, width: int) -> NewTokens:
    """Makes tokens that rows without an answer have: of the base, at the beginning."""
    ids, real, slot = np.zeros((rows, width), np.int32), np.ones(rows, np.int32), np.full(rows, -1, np.int32)
    return NewTokens(ids, real, np.zeros(rows, np.int32), np.zeros(rows, np.int32), slot)


def _choice(requests: Sequence[tuple[int, CompletionRequest, int]], rows: int) -> Choice:
    """Returns how the tokens of the rows are drawn; `requests` are (row, request, tokens drawn so far)."""
    heat, top_p = np.zeros(rows, np.float32), np.ones(rows, np.float32)
    seed, drawn_before, wants_top = np.zeros(rows, np.uint32), np.zeros(rows, np.int32), np.zeros(rows, bool)
    for row, request, drawn in requests:
        heat[row], top_p[row], seed[row] = request.temperature, request.top_p, request.seed % 2**32
        drawn_before[row], wants_top[row] = drawn, request.top_logprobs > 0
    return Choice(heat, top_p, seed, drawn_before, wants_top)
