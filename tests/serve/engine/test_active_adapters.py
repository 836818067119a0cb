"""The selection has the adapters of the rows, reads each once, and is of a size that was compiled."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import jlora
from jlora.bank.selection import Selection
from serve.engine import active_adapters
from serve.engine.active_adapters import ActiveAdapters, selection_sizes
from tests.support.bank_cases import make_adapters, make_case, make_empty_bank


@pytest.fixture(name="bank")
def _bank():
    case = make_case("plain")
    bank = make_empty_bank(case, slots=20)
    for slot in range(20):
        bank = jlora.put(bank, slot, make_adapters(case)[slot % 3])
    return bank


def _is_selected(chosen, bank, slots):
    """Whether each version's place in what was chosen holds what its slot in the bank does."""
    for version, slot in slots.items():
        alone = jlora.select(bank, np.asarray([slot]))
        width = next(iter(alone.joined.values())).scale.shape[-1]
        for path, entry in alone.joined.items():
            found, place = chosen.adapters.joined[path], chosen.places[version]
            axis = entry.scale.ndim - 2
            part = jax.lax.slice_in_dim(found.a, place * width, (place + 1) * width, axis=axis)
            if not (np.array_equal(part, entry.a) and np.array_equal(found.scale[place], entry.scale[0])):
                return False
    return True


def test_the_sizes_of_few_rows_and_of_many(bank):
    assert selection_sizes(bank, 1) == (1,)
    assert selection_sizes(bank, 16) == (4, 8, 16)
    assert selection_sizes(bank, 256) == (64,)  # 128 adapters of rank 6 are wider than one product should be


def test_adapters_come_and_go_without_another_selection(bank, monkeypatch):
    active, made = ActiveAdapters(), []
    monkeypatch.setattr(active_adapters, "select_slots", lambda *args: made.append(1) or jlora.select(*args))
    for slots in ({11: 1, 12: 2}, {12: 2}, {12: 2, 13: 3, 14: 4, 15: 5}, {21: 1, 12: 2}):
        chosen = active.choose(bank, slots, 16)
        assert chosen.adapters.places == 4
        assert _is_selected(chosen, bank, slots)
    assert len(made) == 1


def test_a_new_version_in_the_same_slot_is_read(bank):
    active = ActiveAdapters()
    first = active.choose(bank, {1: 0}, 4)
    assert _is_selected(first, bank, {1: 0})
    bank = jlora.put(bank, 0, jlora.take(bank, 1))
    assert not _is_selected(active.choose(bank, {1: 0}, 4), bank, {1: 0})  # the rows of version 1 keep what they had
    assert _is_selected(active.choose(bank, {2: 0}, 4), bank, {2: 0})


def test_the_size_follows_how_many_are_used(bank, monkeypatch):
    monkeypatch.setattr(active_adapters, "_PATIENCE", 3)
    active = ActiveAdapters()
    many = {version: version for version in range(7)}
    assert active.choose(bank, many, 16).adapters.places == 8
    sizes = [active.choose(bank, {0: 0}, 16).adapters.places for _ in range(4)]
    assert sizes == [8, 8, 4, 4]
    assert active.choose(bank, {0: 0}, 4).adapters.places == 4
    assert active.choose(bank, {0: 0}, 1).adapters.places == 1


def test_more_adapters_than_a_selection_holds_are_gathered_from_the_bank(bank, monkeypatch):
    monkeypatch.setattr(active_adapters, "_WIDEST", 30)
    slots = {version: version for version in range(7)}
    chosen = ActiveAdapters().choose(bank, slots, 16)
    assert chosen.adapters is bank
    assert chosen.places == slots
    assert isinstance(ActiveAdapters().choose(bank, {0: 0}, 16).adapters, Selection)
