"""merge and unmerge: one rounding, the base untouched, inverse to rounding."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.algebra.merge import update
from tests.support.adapters.lora_cases import low_rank, normal
from tests.support.models.encoder_cases import difference

BASE = {"dense": {"kernel": normal(1, 5, 3), "bias": normal(2, 3)}, "layers": normal(3, 4, 5, 3)}
ADAPTER = {
    "dense/kernel": low_rank("ra,rb->ab", (5, 3)),
    "dense/bias": jlora.Full(normal(4, 3)),
    "layers": low_rank("arb,arc->abc", (4, 5, 3)),
}


def test_the_update_is_the_scaled_product_of_b_and_a():
    entry = ADAPTER["dense/kernel"]
    a, b, scale = (np.asarray(value, np.float64) for value in (entry.a, entry.b, entry.scale))
    assert difference(update(entry), a.T @ np.diag(scale) @ b) < 1e-6
    stacked = ADAPTER["layers"]
    for layer in range(4):
        one = jlora.LowRank(stacked.a[layer], stacked.b[layer], stacked.scale[layer], "ra,rb->ab", (2,))
        assert difference(update(stacked)[layer], update(one)) < 1e-6


def test_merging_adds_updates_and_puts_whole_leaves_in():
    merged = jlora.merge(BASE, ADAPTER)
    assert jax.tree.structure(merged) == jax.tree.structure(BASE)
    kernel = np.asarray(BASE["dense"]["kernel"]) + np.asarray(update(ADAPTER["dense/kernel"]))
    assert (merged["dense"]["kernel"] == kernel).all()
    assert (merged["dense"]["bias"] == ADAPTER["dense/bias"].value).all()


def test_unmerging_gives_the_base_back():
    low_rank_only = {path: entry for path, entry in ADAPTER.items() if isinstance(entry, jlora.LowRank)}
    back = jlora.unmerge(jlora.merge(BASE, low_rank_only), low_rank_only)
    for found, expected in zip(jax.tree.leaves(back), jax.tree.leaves(BASE), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_unmerging_leaves_what_is_trained_whole():
    assert (jlora.unmerge(jlora.merge(BASE, ADAPTER), ADAPTER)["dense"]["bias"] == ADAPTER["dense/bias"].value).all()


def test_the_base_is_left_alone():
    before = jax.tree.map(np.array, BASE)
    jlora.merge(BASE, ADAPTER)
    assert all((x == y).all() for x, y in zip(jax.tree.leaves(BASE), jax.tree.leaves(before), strict=True))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sums_are_formed_in_float32_and_rounded_once(dtype):
    base = {"dense": {"kernel": BASE["dense"]["kernel"].astype(dtype), "bias": BASE["dense"]["bias"]}}
    entry = ADAPTER["dense/kernel"]
    merged = jlora.merge(base, {"dense/kernel": entry})["dense"]["kernel"]
    assert merged.dtype == dtype
    exact = np.asarray(base["dense"]["kernel"], np.float32) + np.asarray(update(entry))
    assert (merged == exact.astype(dtype)).all()


@pytest.mark.parametrize("function", [jlora.merge, jlora.unmerge])
def test_an_adapter_of_another_base_is_refused(function):
    with pytest.raises(jlora.JloraError, match=r"^dense/kernel: not in the base tree"):
        function({"layers": BASE["layers"]}, ADAPTER)
    with pytest.raises(jlora.JloraError, match=r"^layers: expected .*\(4, 5, 3\), found one for \(1, 5, 3\)"):
        function(BASE, {"layers": low_rank("arb,arc->abc", (1, 5, 3))})


def test_numbers_that_are_not_finite_are_refused_by_path():
    broken = {
        **ADAPTER,
        "layers": dataclasses.replace(ADAPTER["layers"], b=ADAPTER["layers"].b.at[1, 0, 2].set(jnp.nan)),
    }
    for merge in (jlora.merge, jlora.unmerge):
        with pytest.raises(jlora.JloraError, match=r"^layers: expected finite numbers after the merge, found NaN"):
            merge(BASE, broken)
    overflow = {"w": jnp.full((5, 3), 6e4, jnp.float16)}
    with pytest.raises(jlora.JloraError, match=r"^w: expected finite numbers"):
        jlora.merge(overflow, {"w": dataclasses.replace(low_rank("ra,rb->ab", (5, 3)), scale=jnp.full(2, 1e4))})
    jax.jit(jlora.merge)(BASE, broken)  # traced values cannot be looked at


def test_single_layers_and_rows_are_put_in_their_places():
    base = {"table": normal(5, 7, 4), **BASE}
    adapter = {"layers": jlora.Full(normal(6, 2, 5, 3), (1, 3)), "table": jlora.Rows(normal(7, 2, 4), (6, 0))}
    merged = jlora.merge(base, adapter)
    assert (merged["layers"][jnp.array([1, 3])] == adapter["layers"].value).all()
    assert (merged["layers"][::2] == base["layers"][::2]).all()
    assert (merged["table"][jnp.array([6, 0])] == adapter["table"].value).all()
    assert (merged["table"][1:6] == base["table"][1:6]).all()
    assert all(
        (x == y).all() for x, y in zip(*map(jax.tree.leaves, (jlora.unmerge(merged, adapter), merged)), strict=True)
    )
