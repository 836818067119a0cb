"""Rows keep what they hold when the pool grows and shrinks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from serve.engine import prefill_and_decode, row_pool
from serve.engine.prefill_and_decode import KeyValues
from serve.engine.row_pool import RowPool, Sizes, make_sizes, needed_places
from tests.support.serve.engines import base

SIZES = Sizes((1, 2, 4), (128, 256))


def _pool():
    adapted = base().adapted
    return RowPool(adapted.model, adapted.base, SIZES, is_unstacked=False)


def _memory(pool, number, places):
    like = pool.new_memory(1, places - 64, None)
    assert like.places == places
    return KeyValues(*(np.full(part.shape, number, np.float32) for part in like))


def _numbers(pool):
    return [float(number) for number in pool._memory.keys[:, 0, 0, 0, 0, 0]]


def test_sizes_grow_four_times_each():
    assert make_sizes(16, 1000) == Sizes((1, 4, 16), (320, 1088))
    assert make_sizes(3, 100) == Sizes((1, 3), (192,))
    assert make_sizes(3, 100).places[-1] >= needed_places(99, 1)


def test_rows_keep_what_they_hold(monkeypatch):
    monkeypatch.setattr(row_pool, "_PATIENCE", 2)
    pool = _pool()
    for row in range(3):
        pool.place(_memory(pool, row + 1, 128), row)
    assert (pool._memory.rows, _numbers(pool)[:3]) == (4, [1, 2, 3])
    pool.place(_memory(pool, 4, 256), 3)
    assert (pool._memory.places, _numbers(pool)) == (256, [1, 2, 3, 4])
    needed = {1: 128, 3: 128}
    assert pool.shrink(needed) == {1: 1, 3: 3}
    assert pool.shrink(needed) == {1: 0, 3: 1}
    assert (pool._memory.rows, _numbers(pool)) == (2, [2, 4])
    needed = {0: 128, 1: 128}
    for _ in range(2):
        assert pool.shrink(needed) == {0: 0, 1: 1}
    assert (pool._memory.rows, pool._memory.places) == (2, 128)


@pytest.mark.parametrize(("known", "size"), [(128, 128), (256, 128), (128, 256), (256, 256)])
def test_a_prompt_that_begins_like_a_longer_one_needs_no_more_memory_than_it_does_alone(known, size):
    pool = _pool()
    memory = pool.new_memory(size - 64, 64, _memory(pool, 3, known))
    assert memory.places == size
    filled = min(known, size)
    assert (np.asarray(memory.keys)[..., :filled] == 3).all()
    assert (np.asarray(memory.values)[..., :filled, :] == 3).all()


def test_whatever_is_known_of_a_prompt_nothing_compiles_after_the_warm_up(monkeypatch):
    monkeypatch.setattr(row_pool, "extend", lambda model, base, bank, memory, *rest: (None, memory))
    monkeypatch.setattr(row_pool, "_selections", lambda bank, rows: [None])
    adapted = base().adapted
    sizes = Sizes((1, 2), (130, 194, 258, 322))  # no other test has them
    pool = RowPool(adapted.model, adapted.base, sizes, is_unstacked=False)
    pool.warm_up(None)
    counts = prefill_and_decode.insert._cache_size(), prefill_and_decode.repack._cache_size()
    for known, size in itertools.product(sizes.places, sizes.places):
        pool.new_memory(1, size - 1, pool.new_memory(1, known - 1, None))
    assert (prefill_and_decode.insert._cache_size(), prefill_and_decode.repack._cache_size()) == counts


@pytest.mark.parametrize("prompt", [1, 63, 64, 100])
def test_a_memory_has_room_for_the_padding_of_every_piece(prompt):
    assert needed_places(prompt, 1) >= -(-prompt // 32) * 32
