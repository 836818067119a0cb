"""Damaged files, numbers that are none and a clock that runs backwards."""

import re

import pytest

from tests.runs.faults import runs

pytestmark = pytest.mark.parametrize("trainer", runs.EITHER)


def _resumed(trainer, folder, log, fault=None):
    return runs.run(trainer, runs.TRAINERS[trainer](folder, "--resume"), log, fault)


def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(trainer, undisturbed, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    assert _resumed(trainer, folder, log, ("batch", 8, 0.0)) == -9
    for damage in (_truncate, _flip):
        damaged = runs.newest(folder)
        damage(damaged)
        before = int(damaged.name)
        assert _resumed(trainer, folder, log, ("batch", 8, 0.0)) == -9, log.read_text()
        assert f"{damaged}: damaged, set aside" in log.read_text()
        assert damaged.with_name(f"{damaged.name}.damaged").is_dir()
        assert f"resumed at step {before - 2}\n" in log.read_text()
    assert _resumed(trainer, folder, log) == 0, log.read_text()
    runs.assert_same(folder, undisturbed(trainer)[0])


def _truncate(checkpoint):
    for file in checkpoint.glob("arrays/**/d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _flip(checkpoint):
    for file in checkpoint.glob("arrays/**/d/*"):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)


def test_a_loss_that_is_nan_stops_the_run_and_overwrites_nothing(trainer, undisturbed, tmp_path):
    """The resumed run, whose batches are whole again, is the undisturbed one: state and best are from before."""
    folder, log = tmp_path / "run", tmp_path / "log"
    assert _resumed(trainer, folder, log, ("nan", 7, 0.0)) == 2
    said = r"error: step 7: expected a finite \w+, found nan; stopped, the checkpoint of step 6 is kept"
    assert re.search(said, log.read_text())
    assert _resumed(trainer, folder, log) == 0, log.read_text()
    runs.assert_same(folder, undisturbed(trainer)[0])


def test_a_clock_that_runs_backwards_changes_nothing(trainer, undisturbed, tmp_path):
    """Killed where the partial window of the first epoch comes, and resumed ten days before."""
    folder, log = tmp_path / "run", tmp_path / "log"
    assert _resumed(trainer, folder, log, ("batch", 3, 0.0)) == -9
    assert _resumed(trainer, folder, log, ("clock", 0, 864_000.0)) == 0, log.read_text()
    runs.assert_same(folder, undisturbed(trainer)[0])
