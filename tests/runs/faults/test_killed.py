"""A run that SIGKILL ends ten times, at random moments, leaves bit for bit what the undisturbed run leaves."""

import pytest

from tests.runs.faults import runs

KILLS = 10


@pytest.mark.parametrize("trainer", runs.TRAINERS)
def test_ten_kills_change_nothing(trainer, undisturbed, tmp_path):
    whole, seconds = undisturbed(trainer)
    folder, log = tmp_path / "run", tmp_path / "log"
    arguments, inside = runs.TRAINERS[trainer](folder, "--resume"), 0
    for kill in runs.moments(KILLS, 0, seconds):
        assert runs.run(trainer, arguments, log, kill) == -9, log.read_text()
        inside += bool(runs.begun(folder))
    assert inside > 1
    assert not (folder / "report.json").exists()
    assert runs.run(trainer, arguments, log) == 0, log.read_text()
    runs.assert_same(folder, whole)
    print(f"{trainer}: {inside} of {KILLS} kills inside a save")
