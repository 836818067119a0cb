"""The loop's decisions (when it evaluates, saves, stops), with steps that compute nothing."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jlora.errors import JloraError
from train import checkpoint
from train import loop as loops
from train.batches import plan_epoch
from train.checkpoint import Best
from train.loop import Loop, batches, run
from train.sections import TrainSection
from train.step import State

LENGTHS = np.random.default_rng(0).integers(2, 9, 10)


def _loop(accuracies=(), losses=None, norms=None, seed=0, **train):
    """Ten rows; losses and gradient norms are those of steps 1, 2, ...; accuracies those of one evaluation after
    another."""
    section = TrainSection(**{"batch_size": 4, "max_steps": 7, **train})
    size = section.batch_size * section.gradient_accumulation_steps
    accuracies = iter(accuracies)

    def train_step(state, frozen, base, batch, key):
        step = int(state.step)
        values = {"loss": (losses or {}).get(step + 1, 0.5), "grad_norm": (norms or {}).get(step + 1, 1.0)}
        return State({"w": state.trainable["w"] + 1}, (), state.step + 1), values

    def evaluate(adapter):
        accuracy = next(accuracies, 0.5)
        return {"accuracy": accuracy, "loss": 1 - accuracy}

    return Loop(
        train=section,
        steps=section.max_steps,
        per_epoch=-(-10 // size),
        base=None,
        frozen={"w": None},
        plan=lambda epoch: plan_epoch(LENGTHS, (4, 8), size, seed, epoch),
        batch=lambda planned: planned,
        count=lambda batch: len(batch.rows),
        unit="examples",
        train_step=train_step,
        evaluate=evaluate,
        metric="accuracy",
        rate=lambda step: 1e-3,
        key=jax.random.key(0),
    )


class _Recorder:
    def __init__(self):
        self.lines = []

    def log(self, step, values, prefix):
        self.lines.append((step, prefix))


def _run(monkeypatch, loop, start=0, best=None):
    """(best, steps of evaluations, steps of checkpoints)"""
    saved, recorder = [], _Recorder()
    monkeypatch.setattr(checkpoint, "save", lambda manager, state, best: saved.append(int(state.step)))
    state = State({"w": jnp.full(1, float(start))}, (), jnp.int32(start))
    best, rate = run(loop, state, best or Best({"w": np.zeros(1)}), None, recorder)
    assert rate >= 0
    return best, [step for step, prefix in recorder.lines if prefix == "validation"], saved


@pytest.mark.parametrize(
    ("settings", "evaluated", "saved"),
    [
        ({}, [3, 6, 7], [3, 6, 7]),
        ({"eval_every": 2}, [2, 4, 6, 7], [2, 4, 6, 7]),
        ({"eval_every": 3, "checkpoint_every": 2}, [3, 6, 7], [2, 4, 6, 7]),
        ({"eval_every": 2, "checkpoint_every": 5}, [2, 4, 6, 7], [5, 7]),
        ({"eval_every": 50, "checkpoint_every": 50}, [7], [7]),
        ({"gradient_accumulation_steps": 2}, [2, 4, 6, 7], [2, 4, 6, 7]),
    ],
)
def test_when_it_evaluates_and_saves(settings, evaluated, saved, monkeypatch):
    assert _run(monkeypatch, _loop(**settings))[1:] == (evaluated, saved)


def test_the_best_step_is_the_first_of_the_highest(monkeypatch):
    best, *_ = _run(monkeypatch, _loop([0.25, 0.75, 0.5, 0.75], eval_every=2))
    assert (best.step, best.value, best.stale) == (4, 0.75, 2)
    assert best.trainable["w"].tolist() == [4.0]


def test_it_stops_when_patience_is_at_its_end(monkeypatch):
    loop = _loop([0.75, 0.5, 0.75, 1.0], eval_every=1, early_stopping_patience=2)
    best, evaluated, saved = _run(monkeypatch, loop)
    assert evaluated == saved == [1, 2, 3]
    assert (best.step, best.stale) == (1, 2)
    # Resumed there, it does not go on.
    best, evaluated, saved = _run(monkeypatch, loop, start=3, best=best)
    assert evaluated == saved == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stops_it_before_it_is_saved(value, monkeypatch):
    saved = []
    monkeypatch.setattr(checkpoint, "save", lambda manager, state, best: saved.append(int(state.step)))
    for broken in ({"losses": {5: value}}, {"norms": {5: value}}):
        saved.clear()
        with pytest.raises(
            JloraError, match=r"step 5: expected a finite (loss|grad_norm).*checkpoint of step 4 is kept"
        ):
            _run_plain(_loop(**broken, eval_every=2))
        assert saved == [2, 4]


def test_an_evaluation_that_is_not_finite_stops_it_before_it_is_saved(monkeypatch):
    monkeypatch.setattr(checkpoint, "save", lambda *_: pytest.fail("a broken step was saved"))
    with pytest.raises(JloraError, match=r"step 2: expected a finite .*validation.*no checkpoint was written yet"):
        _run_plain(_loop([float("nan")], eval_every=2))


def _run_plain(loop):
    run(loop, State({"w": jnp.zeros(1)}, (), jnp.int32(0)), Best({"w": np.zeros(1)}), None, _Recorder())


def _fingerprints(found):
    return [(batch.rows.tolist(), batch.length) for batch in found]


@pytest.mark.parametrize("start", [1, 2, 3, 5])
def test_the_batches_of_a_resumed_run_are_those_that_were_left(start):
    loop = _loop()
    assert _fingerprints(batches(loop, start)) == _fingerprints(batches(loop, 0))[start:]


def test_an_epoch_holds_every_row_once_and_no_two_are_alike():
    found = list(batches(_loop(), 0))
    epochs = [np.concatenate([batch.rows for batch in found[first : first + 3]]) for first in (0, 3)]
    for rows in epochs:
        assert sorted(rows) == list(range(10))
    assert epochs[0].tolist() != epochs[1].tolist()
    assert _fingerprints(found) != _fingerprints(batches(_loop(seed=1), 0))


def test_evaluations_do_not_count_as_training(monkeypatch):
    paused = []

    @contextlib.contextmanager
    def noted(progress):
        paused.append(True)
        yield

    monkeypatch.setattr(loops.Progress, "paused", noted)
    _run(monkeypatch, _loop(eval_every=2))
    assert len(paused) == 7
