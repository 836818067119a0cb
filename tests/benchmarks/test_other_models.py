"""The command that adapts models of others: its list, its table and its check, without their packages."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks.other_models import one_model
from benchmarks.other_models.__main__ import BEGIN, END, HEADER, MODELS, PAGE, between_marks, cells, notes
from benchmarks.other_models.one_model import Built, Model, checked, require_versions

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _their_world():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def weights() -> dict:
    used, bounded = jnp.ones((6, 8)) / 6, jnp.ones((8, 4))
    return {"used": {"kernel": used}, "added": jnp.ones((3, 8)), "bounded": {"kernel": bounded}}


def model(weights, x):
    hidden = jnp.tanh(x @ weights["used"]["kernel"]) + weights["added"]
    return hidden @ jnp.tanh(weights["bounded"]["kernel"])


def test_each_package_is_pinned_once():
    pinned = {requirement for each in MODELS.values() for requirement in each.requirements}
    assert all(re.fullmatch(r"[a-z0-9-]+==\d[\w.]*", requirement) for requirement in pinned)
    names = [requirement.partition("==")[0] for requirement in pinned]
    assert len(names) == len(set(names))


def test_the_page_has_a_row_for_each_model():
    _, _, rest = (ROOT / PAGE).read_text().partition(BEGIN)
    table, end, _ = rest.partition(END)
    assert end
    rows = [line.split(" | ")[:3] for line in table.strip().splitlines()[2:]]
    expected = [(each.package.replace("==", " "), each.title, each.framework) for each in MODELS.values()]
    assert [(package.removeprefix("| "), title, framework) for package, title, framework in rows] == expected


def test_the_table_goes_between_the_marks():
    page = f"before\n{BEGIN}\nold\n{END}\nafter"
    assert between_marks(page, "new") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter"
    with pytest.raises(ValueError, match="expected"):
        between_marks(page.replace(END, ""), "new")


def test_what_was_found_becomes_a_row():
    found = checked(Built(model, weights(), (jax.random.normal(jax.random.key(0), (3, 6)),)))
    row = dict(zip(HEADER, cells(Model("some==1.0", "a model", "JAX", lambda: None), found), strict=True))
    assert (row["package"], row['`"all-linear"`'], row['`".*"`']) == ("some 1.0", "1 of 3", "1 of 3")
    assert row["not adapted, and the operation"] == "`added` (add), `bounded/kernel` (tanh)"


def test_layers_that_differ_by_a_number_are_one_note():
    left = [("layers/0/w", "mul"), ("layers/1/w", "mul"), ("a", "add"), ("b", "add"), ("c", "add")]
    assert notes(left) == "`layers/*/w` x 2 (mul), `a` (add), `b` (add), 1 more"


def test_a_difference_from_merge_is_an_error(monkeypatch):
    monkeypatch.setattr(one_model, "TOLERANCE", -1.0)
    with pytest.raises(RuntimeError, match="differ"):
        checked(Built(model, weights(), (jnp.ones((3, 6)),)))


def test_a_missing_or_another_version_is_an_error():
    with pytest.raises(RuntimeError, match="found none"):
        require_versions(Model("no-such-package==1.0", "", "", lambda: None))
    with pytest.raises(RuntimeError, match=r"expected version 0\.0\.1"):
        require_versions(Model("jax==0.0.1", "", "", lambda: None))
