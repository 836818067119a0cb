"""The table of published speeds, of a tiny shape."""

from __future__ import annotations

import jax
import pytest

from benchmarks import published
from benchmarks.published import Published, best, cells
from tests.support.programs.plan_cases import TINY
from train.planning.chips import CHIPS


@pytest.fixture(autouse=True)
def _short_rows(monkeypatch):
    monkeypatch.setattr(published, "LENGTH", 256)
    with jax.numpy_dtype_promotion("standard"):  # optax.adamw raises a float to an integer's power
        yield


def test_a_row_has_their_speed_ours_and_the_ratio():
    row = dict(zip(published.HEADER, cells(Published("tiny", TINY, 1, 1, tokens=1000.0)), strict=True))
    assert (row["model"], row["chips"], row["remat"], row["published"]) == ("tiny", "1", "off", "1,000")
    assert float(row["planned / published"]) == pytest.approx(int(row["planned"].replace(",", "")) / 1000, abs=0.006)


def test_a_step_that_does_not_fit_is_planned_with_remat(monkeypatch):
    tiny = Published("tiny", TINY | {"num_hidden_layers": 24}, 1, 1, tokens=1000.0)
    off, without = best(tiny)
    monkeypatch.setattr(published, "CHIP", CHIPS["h100"]._replace(memory=without.memory.in_all))
    on, plan = best(tiny)
    assert (off, on) == (False, True)
    assert plan.memory.in_all < without.memory.in_all
