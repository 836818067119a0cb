"""A fresh bank has the base behind slot -1, and no adapter in any slot."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.errors import JloraError, TargetNotFoundError
from tests.support.bank_cases import KINDS, SLOTS, make_case, make_empty_bank


@pytest.mark.parametrize("kind", KINDS)
def test_slot_minus_one_is_the_base(kind):
    case = make_case(kind)
    found = jlora.adapt_many(case.fn)(case.base, make_empty_bank(case), jnp.full(6, -1), case.rows)
    np.testing.assert_allclose(found, jlora.adapt(case.fn)(case.base, None, case.rows), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_all_arrays_have_one_place_more_than_there_are_slots(kind):
    bank = make_empty_bank(make_case(kind))
    assert bank.slots == SLOTS
    assert {leaf.shape[0] for leaf in jax.tree.leaves(bank)} == {SLOTS + 1}
    assert bank.filled.tolist() == [False] * SLOTS + [True]


def test_what_cannot_be_a_bank_is_refused():
    case = make_case("plain")
    with pytest.raises(JloraError, match="slots: expected 1 or more, found 0"):
        jlora.make_bank(case.base, case.fn, case.rows, slots=0, max_rank=2)
    with pytest.raises(TargetNotFoundError):
        jlora.make_bank(case.base, case.fn, case.rows, slots=1, max_rank=2, targets=["nothing"])
