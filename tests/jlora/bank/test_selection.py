"""Rows that share a selection get what each gives alone, and nothing of each other."""

from __future__ import annotations

import dataclasses

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from tests.support.bank_cases import KINDS, make_case, with_adapters


@pytest.mark.parametrize("kind", KINDS)
def test_a_selection_gives_what_the_bank_gives(kind):
    case = make_case(kind)
    bank, _ = with_adapters(case)
    many = jax.jit(jlora.adapt_many(case.fn))
    expected = many(case.base, bank, jnp.array([2, 0, -1, 1, 2, 0]), case.rows)
    selection = jlora.select(bank, jnp.array([1, 2, 0]))
    found = many(case.base, selection, jnp.array([1, 2, -1, 0, 1, 2]), case.rows)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize("kind", KINDS)
def test_replacing_one_place_is_selecting_anew(kind):
    bank, _ = with_adapters(make_case(kind))
    replaced = jlora.replace_selected(jlora.select(bank, jnp.array([0, 1, 3])), jnp.int32(1), bank, jnp.int32(2))
    expected = jlora.select(bank, jnp.array([0, 2, 3]))
    assert jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y, equal_nan=True), replaced, expected))


@pytest.mark.parametrize("place", [-1, 3, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_at_a_place_that_there_is_not_nothing_is_replaced(kind, place):
    bank, _ = with_adapters(make_case(kind))
    selection = jlora.select(bank, jnp.array([0, 1, 3]))
    replaced = jlora.replace_selected(selection, jnp.int32(place), bank, jnp.int32(2))
    assert jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y, equal_nan=True), replaced, selection))


def test_without_an_adapter_there_is_no_answer_and_no_harm():
    case = make_case("stacked")
    bank, _ = with_adapters(case)
    many = jlora.adapt_many(case.fn)
    selection = jlora.select(bank, jnp.array([0, 4, 99]))  # slot 4 is empty, 99 is not there
    places = jnp.array([0, 1, 2, 3, -2, -1])
    found = many(case.base, selection, places, case.rows)
    assert jnp.isnan(found[1:5]).all()
    expected = many(case.base, bank, jnp.array([0, -1]), case.rows[jnp.array([0, 5])])
    np.testing.assert_allclose(found[jnp.array([0, 5])], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", ["a", "b"])
@pytest.mark.parametrize("number", [np.nan, np.inf, 3e38])
def test_an_adapter_that_has_overflowed_reaches_its_own_rows_alone(factor, number):
    case = make_case("stacked")
    bank, adapters = with_adapters(case)

    def spoil(entry):
        return dataclasses.replace(entry, **{factor: jnp.full_like(getattr(entry, factor), number)})

    bank = jlora.put(bank, 1, {path: spoil(entry) for path, entry in adapters[1].items()})
    selection = jlora.select(bank, jnp.array([0, 1, 2]))
    found = jlora.adapt_many(case.fn)(case.base, selection, jnp.array([0, 1, 2]), case.rows[:3])
    expected = jlora.adapt_many(case.fn)(case.base, bank, jnp.array([0, 2]), case.rows[jnp.array([0, 2])])
    np.testing.assert_allclose(found[jnp.array([0, 2])], expected, rtol=1e-5, atol=1e-5)
    assert not jnp.isfinite(found[1]).all() or np.isfinite(number)


def test_all_rows_share_one_product_with_a_and_b():
    case = make_case("stacked")
    bank, _ = with_adapters(case)
    selection, places = jlora.select(bank, jnp.array([0, 1, 2])), jnp.array([0, 1, 2, 0, -1, 1])
    jaxpr = jax.make_jaxpr(jlora.adapt_many(case.fn))(case.base, selection, places, case.rows)
    products = [equation for equation in _equations(jaxpr.jaxpr) if equation.primitive.name == "dot_general"]
    assert len(products) > 6
    assert all(equation.params["dimension_numbers"][1] == ((), ()) for equation in products), "a product row by row"


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _equations(getattr(inner, "jaxpr", inner))
