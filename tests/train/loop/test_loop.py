"""The loop's decisions (when it evaluates, saves, stops), with steps that compute nothing."""

import contextlib
import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jlora.errors import JloraError
from train.cli.signals import Stop
from train.config.sections import TrainSection
from train.data.bucketing import plan_epoch
from train.devices.compile_ahead import Compiler
from train.loop import loop as loops
from train.loop.loop import Loop, plan_steps, run_loop
from train.run import checkpoints
from train.run.best import Best
from train.run.checkpoints import Checkpoint, Rest
from train.run.state import State

NOTHING = Rest()
LENGTHS = np.random.default_rng(0).integers(2, 9, 10)


def _loop(accuracies=(), losses=None, norms=None, seed=0, eval_losses=None, seen=None, **train):
    """Ten rows; losses and gradient norms are those of steps 1, 2, ...; accuracies and eval_losses those of one
    evaluation after another. What is evaluated is added to `seen`."""
    section = TrainSection(**{"batch_size": 4, "max_steps": 7, "eval_on_start": False, **train})
    size = section.batch_size * section.gradient_accumulation_steps
    accuracies, seen = iter(accuracies), [] if seen is None else seen
    eval_losses = None if eval_losses is None else iter(eval_losses)

    def train_step(state, frozen, base, batch, key):
        step = int(state.step)
        values = {"loss": (losses or {}).get(step + 1, 0.5), "grad_norm": (norms or {}).get(step + 1, 1.0)}
        return State({"w": state.trainable["w"] + 1}, (), state.step + 1), values

    def evaluate(adapter, check):
        check()
        accuracy = next(accuracies, 0.5)
        seen.append(adapter["w"].tolist())
        return {"accuracy": accuracy, "loss": 1 - accuracy if eval_losses is None else next(eval_losses)}

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
        work=lambda planned: planned.length,
        lengths=(4, 8),
        train_step=train_step,
        compiler=Compiler(),
        prepare=lambda plan, state: None,
        prepare_evaluation=lambda state: None,
        evaluate=evaluate,
        evaluation=5.0,
        evaluation_batches=3,
        metric="accuracy",
        rate=lambda step: 1e-3,
        key=jax.random.key(0),
    )


class _Recorder:
    def __init__(self):
        self.logged = []

    @property
    def lines(self):
        return len(self.logged)

    def log(self, step, values, prefix):
        self.logged.append((step, prefix, dict(values)))


class _Manager:
    """Checkpoints that nothing writes."""

    directory = "checkpoints"

    def check_for_errors(self):
        pass

    def wait_until_finished(self):
        pass


@pytest.fixture
def saved(monkeypatch):
    """The checkpoints that were saved."""
    found = []
    monkeypatch.setattr(checkpoints, "save", lambda manager, begun: found.append(begun))
    return found


def _start(step=0, best=None, rest=NOTHING):
    return Checkpoint(
        State({"w": jnp.full(1, float(step))}, (), jnp.int32(step)), best or Best({"w": np.zeros(1)}), rest
    )


def _run(loop, begin=None, stop=None):
    """(best, what was recorded)"""
    recorder = _Recorder()
    best, rate = run_loop(loop, begin or _start(), _Manager(), recorder, stop or Stop())
    assert rate >= 0
    return best, recorder.logged


def _evaluated(logged):
    return [step for step, prefix, _ in logged if prefix == "validation"]


def _steps(saved):
    return [int(begun.state.step) for begun in saved]


@pytest.mark.parametrize(
    ("settings", "evaluated", "written"),
    [
        ({}, [3, 6, 7], [3, 6, 7]),
        ({"eval_every": 2}, [2, 4, 6, 7], [2, 4, 6, 7]),
        ({"eval_every": 3, "checkpoint_every": 2}, [3, 6, 7], [2, 4, 6, 7]),
        ({"eval_every": 2, "checkpoint_every": 5}, [2, 4, 6, 7], [5, 7]),
        ({"eval_every": 50, "checkpoint_every": 50}, [7], [7]),
        ({"gradient_accumulation_steps": 2}, [2, 4, 6, 7], [2, 4, 6, 7]),
    ],
)
def test_when_it_evaluates_and_saves(settings, evaluated, written, saved):
    _, logged = _run(_loop(**settings))
    assert _evaluated(logged) == evaluated
    assert _steps(saved) == written


@pytest.mark.usefixtures("saved")
def test_the_best_step_is_the_first_of_the_highest():
    best, _ = _run(_loop([0.25, 0.75, 0.5, 0.75], eval_every=2))
    assert (best.step, best.value, best.stale) == (4, 0.75, 2)
    assert best.trainable["w"].tolist() == [4.0]
    assert best.metrics == {"accuracy": 0.75, "loss": 0.25}


@pytest.mark.usefixtures("saved")
def test_of_steps_of_equal_accuracy_the_one_of_the_lowest_loss_is_the_best():
    loop = _loop([0.75, 1.0, 1.0, 1.0], eval_losses=[0.1, 0.9, 0.2, 0.3], eval_every=2)
    best, _ = _run(loop)
    assert (best.step, best.value, best.metrics["loss"]) == (6, 1.0, 0.2)
    assert best.trainable["w"].tolist() == [6.0]
    assert best.stale == 2  # patience counts what raised the metric


@pytest.mark.usefixtures("saved")
def test_the_model_before_training_is_evaluated_once_and_is_never_the_best():
    seen = []
    best, logged = _run(_loop([0.9, 0.25, 0.75], eval_every=3, eval_on_start=True, seen=seen))
    assert [line[:2] for line in logged if line[1] != "train"] == [
        (3, "start"), (3, "validation"), (6, "validation"), (7, "validation"),
    ]  # fmt: skip
    assert seen == [[0.0], [3.0], [6.0], [7.0]]
    assert next(values for _, prefix, values in logged if prefix == "start")["accuracy"] == 0.9
    assert (best.step, best.value) == (6, 0.75)


def test_a_run_that_is_resumed_before_its_first_evaluation_still_knows_its_start(saved):
    settings = {"eval_every": 6, "checkpoint_every": 2, "eval_on_start": True}
    _run(_loop(**settings))
    seen = []
    _, logged = _run(_loop(**settings, seen=seen), saved[0])
    assert (int(saved[0].state.step), seen[:2]) == (2, [[0.0], [6.0]])
    assert [line[0] for line in logged if line[1] == "start"] == [6]


def test_a_signal_that_cuts_the_first_evaluation_leaves_no_half_of_it_in_the_record(saved):
    stop, settings = Stop(), {"eval_every": 2, "eval_on_start": True}
    loop = _loop([0.1, 0.2], **settings)

    def evaluate(adapter, check):
        if adapter["w"].tolist() != [0.0]:
            stop.note(signal.SIGINT, None)
        check()
        return {"accuracy": 0.1, "loss": 0.9}

    _, logged = _run(dataclasses.replace(loop, evaluate=evaluate), stop=stop)
    assert [line for line in logged if line[1] != "train"] == []
    _, logged = _run(loop, saved[-1])
    assert [line[:2] for line in logged][:2] == [(2, "start"), (2, "validation")]


def test_it_stops_when_patience_is_at_its_end(saved):
    loop = _loop([0.75, 0.5, 0.75, 1.0], eval_every=1, early_stopping_patience=2)
    best, logged = _run(loop)
    assert _evaluated(logged) == _steps(saved) == [1, 2, 3]
    assert (best.step, best.stale) == (1, 2)
    # Resumed there, it does not go on.
    assert _run(loop, saved[-1]) == (best, [])
    assert _steps(saved) == [1, 2, 3]


def test_where_patience_ends_it_there_is_a_checkpoint(saved):
    _run(_loop([0.75, 0.5, 0.75], eval_every=1, checkpoint_every=7, early_stopping_patience=2))
    assert _steps(saved) == [3]
    best, logged = _run(_loop([0.75], eval_every=1, early_stopping_patience=2), saved[-1])
    assert (best.step, logged) == (1, [])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stops_it_before_it_is_saved(value, saved):
    for broken in ({"losses": {5: value}}, {"norms": {5: value}}):
        saved.clear()
        with pytest.raises(
            JloraError, match=r"step 5: expected a finite (loss|grad_norm).*checkpoint of step 4 is kept"
        ):
            _run(_loop(**broken, eval_every=2))
        assert _steps(saved) == [2, 4]
        assert all(np.isfinite(begun.best.trainable["w"]).all() for begun in saved)


def test_an_evaluation_that_is_not_finite_stops_it_before_it_is_saved(saved):
    with pytest.raises(JloraError, match=r"step 2: expected a finite .*validation.*no checkpoint was written yet"):
        _run(_loop([float("nan")], eval_every=2))
    assert saved == []


def _signalled_at(step, loop, stop):
    """The loop, to which a signal comes while the step runs."""

    def train_step(state, *rest):
        if int(state.step) + 1 == step:
            stop.note(signal.SIGTERM, None)
        return loop.train_step(state, *rest)

    return dataclasses.replace(loop, train_step=train_step)


_LOSSES = {step: 1 / step for step in range(1, 8)}


@pytest.mark.parametrize("step", range(1, 8))
def test_a_run_that_a_signal_stopped_goes_on_as_if_it_had_not(step, saved):
    settings = {"losses": _LOSSES, "eval_every": 2, "checkpoint_every": 5, "log_every": 3}
    accuracies = [0.25, 0.75, 0.5, 0.625]
    whole, record = _run(_loop(accuracies, **settings))
    saved.clear()
    stop = Stop()
    _, before = _run(_signalled_at(step, _loop(accuracies, **settings), stop), stop=stop)
    assert _steps(saved)[-1] == step
    assert saved[-1].rest.lines == len(before)
    done = len(_evaluated(before))
    best, after = _run(_loop(accuracies[done:], **settings), saved[-1])
    assert best == whole
    assert [line[:2] for line in before + after] == [line[:2] for line in record]
    losses = [[line[2]["loss"] for line in lines if line[1] == "train"] for lines in (before + after, record)]
    assert losses[0] == losses[1]


def test_a_signal_cuts_an_evaluation_which_the_resumed_run_makes_up_for(saved):
    loop, stop = _loop([0.75], eval_every=2), Stop()

    def evaluate(adapter, check):
        stop.note(signal.SIGINT, None)
        check()
        pytest.fail("the evaluation went on")

    _, logged = _run(dataclasses.replace(loop, evaluate=evaluate), stop=stop)
    assert _evaluated(logged) == []
    assert _steps(saved) == [2]
    assert saved[-1].rest.unevaluated
    best, logged = _run(loop, saved[-1])
    assert _evaluated(logged) == [2, 4, 6, 7]
    assert (best.step, best.value) == (2, 0.75)


def test_a_signal_that_comes_while_the_missed_evaluation_is_made_up_for_changes_nothing(saved):
    stop = Stop()
    stop.note(signal.SIGINT, None)
    best, logged = _run(_loop(eval_every=2), _start(2, rest=Rest(unevaluated=True)), stop)
    assert (best.value, logged, saved) == (None, [], [])


def _fingerprints(found):
    return [(batch.rows.tolist(), batch.length) for batch, _ in found]


@pytest.mark.parametrize("start", [1, 2, 3, 5])
def test_the_batches_of_a_resumed_run_are_those_that_were_left(start):
    loop = _loop()
    assert _fingerprints(plan_steps(loop, start)) == _fingerprints(plan_steps(loop, 0))[start:]


def test_an_epoch_holds_every_row_once_and_no_two_are_alike():
    found = list(plan_steps(_loop(), 0))
    epochs = [np.concatenate([batch.rows for batch, _ in found[first : first + 3]]) for first in (0, 3)]
    for rows in epochs:
        assert sorted(rows) == list(range(10))
    assert epochs[0].tolist() != epochs[1].tolist()
    assert _fingerprints(found) != _fingerprints(plan_steps(_loop(seed=1), 0))


def test_the_work_that_is_left_is_that_of_the_steps_to_come():
    loop = _loop()
    work = [batch.length for batch, _ in plan_steps(loop, 0)]
    left = [left for _, left in plan_steps(loop, 0)]
    per_epoch = sum(work[:3])
    # Known for the epoch that runs; those to come are like it.
    assert left[:3] == pytest.approx([sum(work[step:3]) + 4 / 3 * per_epoch for step in (1, 2, 3)])
    assert left[6] == 0
    assert [left for _, left in plan_steps(loop, 4)] == left[4:]


def test_each_epochs_programs_are_prepared_before_its_steps():
    events, loop = [], _loop()
    for batch, _ in plan_steps(loop, 1, lambda plan: events.append(len(plan))):
        events.append(batch.length)
    assert [event for event in events if event < 4] == [2, 3, 1]
    assert events[0] == 2
    assert events[3] == 3


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize(
    ("settings", "start", "expected"),
    [
        ({}, 0, 1),  # the first evaluation is after 3 steps
        ({"eval_every": 7}, 0, 3),
        ({"eval_every": 1}, 2, 3),
        ({"max_steps": 200, "eval_every": 100}, 0, 12),
        ({"max_steps": 200, "eval_every": 100}, 90, 95),
    ],
)
def test_evaluations_programs_are_compiled_after_some_steps_have_run_alone(settings, start, expected):
    found = []
    loop = dataclasses.replace(_loop(**settings), prepare_evaluation=lambda state: found.append(int(state.step)))
    _run(loop, _start(start))
    assert found == [expected]


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [(3, 3)] * 3 + [(2, 2)] * 3 + [(1, 1)]),
        ({"eval_every": 2, "checkpoint_every": 5}, [(4, 2), (4, 2), (3, 2), (3, 2), (2, 2), (2, 1), (1, 1)]),
    ],
)
def test_what_is_left_counts_the_evaluations_and_checkpoints_to_come(settings, expected, monkeypatch):
    found = []
    monkeypatch.setattr(loops.Progress, "update", lambda *arguments: found.append(arguments[-1][1:]))
    _run(_loop(**settings))
    assert found == expected


@pytest.mark.usefixtures("saved")
def test_evaluations_do_not_count_as_training(monkeypatch):
    paused = []

    @contextlib.contextmanager
    def noted(progress, what):
        paused.append(what)
        yield

    monkeypatch.setattr(loops.Progress, "pause", noted)
    _run(_loop(eval_every=2))
    assert paused == ["evaluation", "checkpoint"] * 4
