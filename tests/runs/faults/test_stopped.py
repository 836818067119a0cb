"""SIGTERM and SIGINT while a run trains, and a second run on its folder."""

import os
import signal
import time

import pytest

from tests.runs.faults import runs
from tests.support.training import processes


@pytest.mark.parametrize(
    ("trainer", "number", "code"),
    [
        ("classify", signal.SIGTERM, 143),
        ("lm", signal.SIGINT, 130),
        ("classify", signal.SIGUSR1, 75),
    ],
)
def test_a_signal_saves_and_leaves_with_its_code(trainer, number, code, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    # So long that it does not end by itself; the rate does not depend on where the end is.
    long = [
        "train.max_steps=1000000",
        "train.schedule=constant",
        "train.warmup_steps=0",
        "train.checkpoint_every=1000000",
    ]
    arguments = runs.TRAINERS[trainer](folder, *long, "train.log_every=1")
    first = runs.start(trainer, arguments, log)
    _wait_for_a_step(folder)
    second_log = tmp_path / "second"
    assert runs.run(trainer, [*arguments, "--resume"], second_log) == 2
    assert f"process {first.pid} on {os.uname().nodename} is training in it" in second_log.read_text()
    os.kill(first.pid, number)
    assert processes.finish(first) == code
    assert f"{number.name}: finishing this step and writing a checkpoint" in log.read_text()
    step = runs.learned(folder)[-1]["step"]
    assert f"saved: step {step} of 1000000\n" in log.read_text()
    assert "--resume goes on from the newest checkpoint" in log.read_text().splitlines()[-1]
    assert runs.newest(folder).name == str(step)
    assert runs.run(trainer, [*arguments, "--resume", f"train.max_steps={step}"], log) == 0, log.read_text()
    assert f"resumed at step {step}\n" in log.read_text()


def _wait_for_a_step(folder):
    end = time.monotonic() + processes.LONGEST
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").stat().st_size:
        assert time.monotonic() < end, "no step was made"
        time.sleep(0.05)
