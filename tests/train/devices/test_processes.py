"""Several processes: they find each other, train what one trains, and end together where one is killed."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jlora.errors import JloraError
from tests.support.training import processes, tiny, tiny_lm
from train.config.command import Flags
from train.devices import processes as distributed

_LM = ["train.learning_rate=1e-2", "train.max_steps=6", "train.eval_every=2", "export.merged=false"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (Flags(coordinator="a:1"), "expected all of --coordinator HOST:PORT, --process I and --processes N"),
        (Flags(coordinator="a:1", processes=2), "expected all of"),
        (Flags(coordinator="a", process=0, processes=2), "--coordinator: expected HOST:PORT, found 'a'"),
        (Flags(coordinator="a:1", process=2, processes=2), "--process: expected a number from 0 to 1, found 2"),
    ],
)
def test_flags_that_name_no_place_among_processes(flags, message):
    with pytest.raises(JloraError, match=message), distributed.join_processes(flags):
        pytest.fail("joined")


def test_a_port_that_is_taken():
    with socket.create_server(("::", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(JloraError, match=f"--coordinator: port {port}: expected a free one"),
            distributed.join_processes(Flags(coordinator=f"localhost:{port}", process=0, processes=2)),
        ):
            pytest.fail("joined")


@pytest.mark.parametrize(
    ("environment", "launched"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, False),  # the batch script itself, before srun
        ({"SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_STEP_NUM_TASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
    ],
)
def test_what_a_launcher_leaves_in_the_environment(environment, launched):
    assert distributed.is_launched({"TPU_SKIP_MDS_QUERY": "1"} | environment) is launched


def test_alone_nothing_waits_and_errors_pass():
    with distributed.join_processes(Flags(processes=1)), distributed.first_alone("here") as is_first:
        assert is_first
    distributed.wait_for_all("there")
    distributed.require_same("text", "configuration")
    assert distributed.leave_together(lambda: 2) == 2
    with pytest.raises(ZeroDivisionError):
        distributed.leave_together(lambda: 1 // 0)


def _curve(run, name="loss"):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        (line["step"], key): value for line in lines for key, value in line.items() if key.endswith((name, "grad_norm"))
    }


def _assert_same_curve(run, other):
    found, expected = _curve(run), _curve(other)
    assert found.keys() == expected.keys()
    for place, value in expected.items():
        assert found[place] == pytest.approx(value, rel=1e-4), place


def _assert_well(ended):
    assert [process.code for process in ended] == [0] * len(ended), "\n".join(process.output for process in ended)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A run of train.lm by two processes, and what they said."""
    run = tmp_path_factory.mktemp("pair") / "run"
    ended = processes.run_together("lm", tiny_lm.arguments(run, *_LM))
    _assert_well(ended)
    return run, ended


def test_two_processes_train_what_one_does(pair, tmp_path):
    run, (first, second) = pair
    _assert_same_curve(run, tiny_lm.train(tmp_path / "alone", *_LM))
    assert "step 6/6" in first.output
    assert "done in" in first.output
    assert "step" not in second.output
    assert "trainable" not in second.output


def test_one_killed_all_end_and_the_restart_is_the_run_that_was_not_killed(pair, tmp_path):
    run = tmp_path / "run"
    arguments = [*tiny_lm.arguments(run, *_LM), "--resume"]
    survivor, killed = processes.run_together("lm", arguments, sent=processes.Signal(1, 6, signal.SIGKILL))
    assert killed.code == -9
    assert survivor.code not in (0, -9)
    assert re.search("lost another process|JAX distributed service detected fatal errors", survivor.output)
    _assert_restarted_as(pair[0], run, arguments)


def test_a_signal_to_one_and_all_save_the_same_step_and_leave_with_its_code(pair, tmp_path):
    run = tmp_path / "run"
    arguments = [*tiny_lm.arguments(run, *_LM), "--resume"]
    ended = processes.run_together("lm", arguments, sent=processes.Signal(1, 1, signal.SIGTERM))
    assert [process.code for process in ended] == [143, 143], "\n".join(process.output for process in ended)
    _assert_restarted_as(pair[0], run, arguments)


_LEAVES_LATE = """
import os, sys, time
from train.config.command import Flags
from train.devices.processes import join_processes, leave_together, wait_for_all

def work():
    with join_processes(Flags(coordinator=sys.argv[1], process=int(sys.argv[2]), processes=2)):
        wait_for_all("start")
        time.sleep(2 * int(sys.argv[2]))
    return 143

os._exit(leave_together(work))
"""


def test_the_first_process_serves_until_the_last_has_done_its_work():
    address = f"127.0.0.1:{processes.free_port()}"
    started = [subprocess.Popen([sys.executable, "-c", _LEAVES_LATE, address, str(index)]) for index in range(2)]
    assert [process.wait(processes.LONGEST) for process in started] == [143, 143]


def _assert_restarted_as(whole, run, arguments):
    """A run that came to no end, started again with these arguments, becomes the run in the folder `whole`."""
    assert not (run / "report.json").exists()
    resumed = processes.run_together("lm", arguments)
    _assert_well(resumed)
    assert re.search(r"resumed at step [1-5]$", resumed[0].output, re.MULTILINE)
    found, expected = tiny.tensors(run / "adapter"), tiny.tensors(whole / "adapter")
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
    assert _curve(run) == _curve(whole)


def test_two_processes_share_weights_and_export_them(tmp_path):
    """Each holds half of the base and of the adapter; the merged folder has all of both."""
    more = ["train.learning_rate=1e-2", "train.max_steps=3", "lora.use_dora=true"]
    split = ["mesh.data=1", "mesh.fsdp=2", "mesh.adapters=inherit"]
    run = tmp_path / "run"
    _assert_well(processes.run_together("classify", [*tiny.arguments(run, *more), *split]))
    alone = tiny.train(tmp_path / "alone", *more)
    _assert_same_curve(run, alone)
    assert tiny.report(run)["merged_largest_logit_difference"] < 1e-4
    for folder in ("adapter", "merged"):
        found, expected = tiny.tensors(run / folder), tiny.tensors(alone / folder)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-3, atol=1e-4, err_msg=key)


@pytest.mark.parametrize(
    ("differs", "said"), [("data", "data: expected the same"), ("run", r"output_dir: .*/run: its")]
)
def test_processes_that_see_other_files_are_told_before_the_first_step(differs, said, tmp_path):
    """Of paths that are relative, as with disks that are not shared."""
    places = [tmp_path / "0", tmp_path / "1"]
    for index, place in enumerate(places):
        place.mkdir()
        text = tiny_lm.text_file(400, seed=index * (differs == "data"))
        (place / "text.txt").write_bytes(text.read_bytes())
    output = tmp_path / "run" if differs == "data" else Path("run")
    arguments = tiny_lm.arguments(output, *_LM, data=Path("text.txt"))
    for ended in processes.run_together("lm", arguments, places=places):
        assert ended.code == 2, ended.output
        assert re.search(f"error: {said}", ended.output)
        assert "step 1/6" not in ended.output


def test_two_processes_resume_a_model_of_which_each_holds_half(tmp_path):
    """All weights are trained, so that checkpoints, the best step's too, are read back in parts."""
    more = ["method=full", "train.learning_rate=1e-3", "train.schedule=constant", "train.eval_every=2"]
    run, split = tmp_path / "run", ["mesh.data=1", "mesh.fsdp=2"]
    for steps in ([], ["train.max_steps=4", "--resume"]):
        _assert_well(processes.run_together("lm", [*tiny_lm.arguments(run, *more, *split), *steps]))
    tiny_lm.train(run, *more, "train.max_steps=6", "--resume")  # alone, on one device
    alone = tiny_lm.train(tmp_path / "alone", *more, "train.max_steps=6")
    _assert_same_curve(run, alone)
    found, expected = tiny.tensors(run / "merged"), tiny.tensors(alone / "merged")
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-3, atol=1e-4, err_msg=key)
