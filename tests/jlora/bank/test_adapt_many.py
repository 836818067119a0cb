"""Each row of a function is what its own adapter gives alone, whatever the others have."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.errors import JloraError
from tests.support.bank_cases import KINDS, SLOTS, make_case, with_adapters


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_is_what_its_adapter_gives_alone(kind):
    case = make_case(kind)
    bank, adapters = with_adapters(case)
    slot = jnp.array([2, 0, -1, 1, 2, 0])
    found = jax.jit(jlora.adapt_many(case.fn))(case.base, bank, slot, case.rows)
    for row, index in enumerate(slot.tolist()):
        adapter = None if index < 0 else adapters[index]
        alone = jlora.adapt(case.fn)(case.base, adapter, case.rows[row : row + 1])[0]
        np.testing.assert_allclose(found[row], alone, rtol=1e-5, atol=1e-5 * float(jnp.abs(alone).max()))
    base = jlora.adapt(case.fn)(case.base, None, case.rows)
    assert all(float(jnp.abs(found[row] - base[row]).max()) > 1e-3 for row in (0, 1, 3))


@pytest.mark.parametrize("kind", ["plain", "stacked"])
def test_one_adapter_serves_several_consecutive_rows(kind):
    case = make_case(kind)
    bank, _ = with_adapters(case)
    many = jlora.adapt_many(case.fn)
    grouped = many(case.base, bank, jnp.array([1, -1]), case.rows)
    apart = many(case.base, bank, jnp.array([1, 1, 1, -1, -1, -1]), case.rows)
    np.testing.assert_allclose(grouped, apart, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("slot", [SLOTS - 1, SLOTS, SLOTS + 7, -2])
def test_a_slot_without_an_adapter_gives_nan_and_other_rows_their_own(slot):
    case = make_case("plain")
    bank, adapters = with_adapters(case)
    found = jlora.adapt_many(case.fn)(case.base, bank, jnp.array([0, slot]), case.rows[:2])
    assert jnp.isnan(found[1]).all()
    np.testing.assert_allclose(found[0], jlora.adapt(case.fn)(case.base, adapters[0], case.rows[:1])[0], rtol=1e-5)


def test_nothing_compiles_when_adapters_come_and_go():
    case, traces = make_case("plain"), []

    def fn(base, x):
        traces.append(1)
        return case.fn(base, x)

    bank, adapters = with_adapters(case)
    many = jax.jit(jlora.adapt_many(fn))
    many(case.base, bank, jnp.array([0, 1]), case.rows[:2])
    count = len(traces)
    for slot, adapter in [(3, adapters[2]), (0, adapters[1])]:
        bank = jlora.put(bank, slot, adapter)
        many(case.base, bank, jnp.array([slot, -1]), case.rows[:2])
    many(case.base, jlora.drop(bank, 0), jnp.array([3, 3]), case.rows[:2])
    assert len(traces) == count


def test_dropout_keys_are_each_groups_own():
    case = make_case("plain", dropout=0.5)
    bank, _ = with_adapters(case)
    many, slot = jlora.adapt_many(case.fn), jnp.array([1, 1])
    twice = jnp.repeat(case.rows[:1], 2, axis=0)
    first = many(case.base, bank, slot, twice, dropout_key=jax.random.key(0))
    assert float(jnp.abs(first[0] - first[1]).max()) > 1e-3
    same = many(case.base, bank, slot, twice, dropout_key=jnp.stack([jax.random.key(1)] * 2))
    np.testing.assert_array_equal(same[0], same[1])


def test_rows_that_the_slots_do_not_divide_are_refused():
    case = make_case("plain")
    bank, _ = with_adapters(case)
    with pytest.raises(JloraError, match="4 slots divide evenly"):
        jlora.adapt_many(case.fn)(case.base, bank, jnp.zeros(4, int), case.rows)
    with pytest.raises(JloraError, match="forward_backward"):
        jlora.adapt_many(lambda base, x: case.fn(base, x).sum())(case.base, bank, jnp.zeros(6, int), case.rows)


def test_a_slot_beyond_int32_is_one_that_is_not_there():
    case = make_case("stacked")
    bank, _ = with_adapters(case)
    many = jlora.adapt_many(case.fn)
    for slots in (np.array([0, 2**32, 2**32 - 1, -(2**40)]), np.array([0, 2**31, 2**32 - 1, 2**32 - 2], np.uint32)):
        found = many(case.base, bank, slots, case.rows[:4])
        assert jnp.isnan(found[1:]).all()
        assert not jnp.isnan(found[0]).any()


@pytest.mark.parametrize("slots", [[0.9], [True], [], 0, [[0]]])
def test_slots_that_are_no_list_of_integers_are_refused(slots):
    case = make_case("stacked")
    bank, _ = with_adapters(case)
    with pytest.raises(JloraError, match=r"slots: expected integers of the shape \(groups,\), at least one; found"):
        jlora.adapt_many(case.fn)(case.base, bank, np.array(slots), case.rows[:1])
    with pytest.raises(JloraError, match="slots: expected integers"):
        jlora.select(bank, np.array(slots))
