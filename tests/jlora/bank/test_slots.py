"""What is put into a slot comes out bit for bit, and nothing else changes."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.bank import slots
from jlora.errors import AdapterMismatchError, JloraError
from tests.support.bank_cases import KINDS, MAX_RANK, SLOTS, make_adapters, make_case, make_empty_bank, with_adapters


def _leaves(tree):
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _assert_same(first, second):
    first, second = _leaves(first), _leaves(second)
    assert first.keys() == second.keys()
    for key, value in first.items():
        np.testing.assert_array_equal(value, second[key], err_msg=key)


@pytest.mark.parametrize("kind", KINDS)
def test_take_returns_what_was_put(kind):
    bank, adapters = with_adapters(make_case(kind))
    for slot, adapter in enumerate(adapters):
        found = jlora.take(bank, slot)
        _assert_same(found, adapter)
        assert {p: getattr(e, "ranks", None) for p, e in found.items()} == {
            p: getattr(e, "ranks", None) for p, e in adapter.items()
        }


@pytest.mark.parametrize("kind", KINDS)
def test_no_other_slot_changes_by_a_bit(kind):
    case = make_case(kind)
    bank, adapters = with_adapters(case)
    for changed in (jlora.put(bank, 1, adapters[2]), jlora.drop(bank, 1)):
        for key, old in _leaves(bank).items():
            np.testing.assert_array_equal(np.delete(old, 1, 0), np.delete(_leaves(changed)[key], 1, 0), err_msg=key)


def test_a_slot_that_was_dropped_is_empty():
    bank, _ = with_adapters(make_case("plain"))
    with pytest.raises(JloraError, match="slot 0: expected an adapter, found none"):
        jlora.take(jlora.drop(bank, 0), 0)


def test_one_program_writes_adapters_of_all_ranks():
    case = make_case("plain")
    bank, adapters = make_empty_bank(case), make_adapters(case)
    bank = jlora.put(bank, 0, adapters[0])
    count = slots._write._cache_size()
    for slot, adapter in enumerate([adapters[2], adapters[1], {}], 1):
        bank = jlora.put(bank, slot, adapter)
    assert slots._write._cache_size() == count


def test_donated_banks_are_written_in_place():
    case = make_case("plain")
    bank, adapters = with_adapters(case)
    new = jlora.put(bank, 3, adapters[1], donate=True)
    assert next(iter(bank.entries.values())).a.is_deleted()
    _assert_same(jlora.take(new, 3), adapters[1])


@pytest.mark.parametrize("slot", [-1, SLOTS, 10**6])
def test_slots_that_there_are_not_are_refused(slot):
    bank, adapters = with_adapters(make_case("plain"))
    for use in (
        lambda: jlora.put(bank, slot, adapters[0]),
        lambda: jlora.take(bank, slot),
        lambda: jlora.drop(bank, slot),
    ):
        with pytest.raises(JloraError, match=f"expected 0 to {SLOTS - 1}, found {slot}"):
            use()


def test_adapters_for_which_the_bank_has_no_place_are_refused():
    plain, dora = make_case("plain"), make_case("dora")
    bank, adapter = make_empty_bank(plain), make_adapters(plain)[2]
    path, entry = next(iter(adapter.items()))
    big = dataclasses.replace(plain.configs[-1], r=MAX_RANK + 1)
    wrong = {
        "which the bank has a place": {"other/kernel": entry},
        f"at most {MAX_RANK}, the bank's max_rank, found {MAX_RANK + 1}": jlora.init(
            jax.random.key(0), big, plain.base, plain.fn, plain.rows
        ),
        "use_dora: expected False": make_adapters(dora)[0],
        "entry: expected 'LowRank'": {path: jlora.Full(jnp.zeros(entry.shape))},
        "spec: expected": {path: dataclasses.replace(entry, spec="ra,rb->ba")},
        "shapes of A and B": {path: dataclasses.replace(entry, a=entry.a[..., :-1])},
        "modules_to_save": {"head/kernel": jlora.Full(jnp.zeros((32, 4)))},
    }
    for message, adapter in wrong.items():
        with pytest.raises(AdapterMismatchError, match=message):
            jlora.put(bank, 0, adapter)
