"""What CI holds adapt to: steps of the same numbers, a verdict on ratios, and more work for a slowed adapt."""

from __future__ import annotations

import itertools

import jax
import pytest

import jlora
from benchmarks import short
from train.planning.flops import matrix_flops


@pytest.mark.parametrize(
    ("medians", "code"), [([1.0], 0), ([1.2, 1.05], 0), ([1.2, 1.15, 1.11], 1), ([short.LARGEST_RATIO], 0)]
)
def test_one_attempt_within_the_bound_is_enough(medians, code, monkeypatch, capsys):
    found = iter(medians)
    monkeypatch.setattr(short, "ratios", lambda steps: dict.fromkeys(("q1", "median", "q3"), next(found)))
    assert short.judged({}) == code
    assert ("error: jlora.adapt" in capsys.readouterr().out) == bool(code)
    assert next(found, None) is None


def test_the_two_steps_are_the_same(monkeypatch):
    monkeypatch.setattr(short, "_HIDDEN", 64)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        steps = short.prepared(jlora.adapt)
        assert steps["adapted"]() == pytest.approx(steps["by hand"](), rel=1e-5)
        found = short.ratios(dict.fromkeys(steps, lambda: sum(itertools.repeat(1, 10_000))))
    assert found["min"] <= found["median"] <= found["q3"]


def test_a_slowed_adapt_does_a_fifth_more_work_and_gives_the_same():
    import optax

    from benchmarks.compile import make_step, prepare

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        _, apply, base, adapter, batch = prepare(2, 64)
        batch = {name: jax.numpy.tile(x, (5, 1)) for name, x in batch.items()}
        trainable, frozen = jlora.split(adapter)
        tx = optax.sgd(1e-3)
        steps = [make_step(adapt(apply), tx) for adapt in (jlora.adapt, short.slowed(jlora.adapt))]
        arguments = (trainable, tx.init(trainable), frozen, base, batch)
        plain, more = (matrix_flops(step.trace(*arguments).jaxpr) for step in steps)
        losses = [float(step(*arguments)[2]) for step in steps]
    assert 1.15 < more / plain < 1.25
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
