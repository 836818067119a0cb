import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.support.training import tiny
from train.cli.signals import TIME_IS_UP, Cut, Stopped, listening

_BETWEEN_A_SAVE_AND_THE_NEXT_STEP = """
import os, signal, sys, time
import jax
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
import jax.numpy as jnp
from pathlib import Path
from train.run.best import Best
from train.run.checkpoints import Checkpoint, open_checkpoints, save, wait
from train.cli.signals import Stopped, listening
from train.run.state import State

try:
    with listening() as stop, open_checkpoints(Path(sys.argv[3]), 1) as manager:
        for _ in range(8):  # as many steps and batches of evaluations
            stop.is_requested()
        state = State({"w": jnp.ones(2)}, (), jnp.int32(5))
        save(manager, Checkpoint(state, Best(state.trainable)))
        if sys.argv[2] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        wait(manager)
        patience = 1200
        while not stop.is_requested() and patience:  # until all processes have heard of it
            patience -= 1
            time.sleep(0.05)
except Stopped as stopped:
    print(stopped.code, flush=True)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(10)
print("still there")
"""

NUMBERS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])


@pytest.fixture(autouse=True)
def _heard():
    """Started by nohup, or by a shell's &, this process and those that it starts would ignore some of them."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGTERM)}
    before |= {signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _signal(number):
    os.kill(os.getpid(), number)


CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129, signal.SIGUSR1: 75, signal.SIGXCPU: 75}


@pytest.mark.parametrize("number", CODES)
def test_a_signal_is_noted_and_raised_at_the_end(number):
    def work():
        with listening() as stop:
            assert not stop.is_requested()
            assert not stop.has_come()
            _signal(number)
            assert stop.has_come()
            assert stop.is_requested()
            assert stop.is_requested()

    with pytest.raises(Stopped, match=number.name) as caught:
        work()
    assert caught.value.code == CODES[number]


def test_a_deadline_is_one_too():
    begin, deadline = time.monotonic(), time.monotonic() + 0.3

    def work():
        with listening(deadline) as stop:
            while not stop.is_requested():
                time.sleep(0.05)
            with pytest.raises(Cut):
                stop.check()

    with pytest.raises(Stopped, match="time is up") as caught:
        work()
    assert caught.value.code == TIME_IS_UP
    assert time.monotonic() - begin >= 0.3


def test_a_run_that_ends_before_its_deadline_knows_nothing_of_it():
    with listening(time.monotonic() + 600) as stop:
        assert not stop.is_requested()


def test_a_signal_before_the_deadline_keeps_its_code():
    def work():
        with listening(time.monotonic()) as stop:
            _signal(signal.SIGINT)
            assert stop.is_requested()

    with pytest.raises(Stopped) as caught:
        work()
    assert caught.value.code == 130


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGXCPU])
def test_where_nothing_is_to_be_saved_it_leaves_with_the_same_code(number):
    code = (
        "import os, time\nfrom train.cli.signals import leave_when_time_is_up\nleave_when_time_is_up()\n"
        f"os.kill(os.getpid(), {int(number)})\ntime.sleep(10)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT, capture_output=True, text=True)
    assert done.returncode == TIME_IS_UP
    assert "nothing to save now; continue with --resume" in done.stderr


def test_without_a_signal_nothing_is_raised_and_the_handlers_are_those_of_before():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with listening() as stop:
        assert not stop.is_requested()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_an_error_is_not_hidden_by_a_signal():
    def work():
        with listening():
            _signal(signal.SIGTERM)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()


def test_what_can_be_done_again_is_cut_by_its_next_check():
    def work():
        with listening() as stop:
            stop.check()
            _signal(signal.SIGINT)
            for _ in range(2):
                with pytest.raises(Cut):
                    stop.check()

    with pytest.raises(Stopped):
        work()


def test_several_processes_stop_though_a_checkpoint_was_saved_before_the_signal(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", _BETWEEN_A_SAVE_AND_THE_NEXT_STEP, str(port)]
    started = [
        subprocess.Popen(
            [*command, str(index), tmp_path], cwd=tiny.ROOT, env=tiny.environment(), stdout=subprocess.PIPE
        )
        for index in range(2)
    ]
    said = [process.communicate(timeout=120)[0].decode().splitlines()[-1:] for process in started]
    assert said == [["143"]] * 2
    assert [process.returncode for process in started] == [-signal.SIGTERM] * 2  # after it a signal ends them at once


_BUSY = """
import hashlib
from train.cli.signals import listening
with listening():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # half an hour in which Python runs no handler
"""


@NUMBERS
def test_a_second_signal_ends_the_process_wherever_it_is(number):
    command = [sys.executable, "-c", _BUSY]
    with subprocess.Popen(command, cwd=tiny.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        process.send_signal(number)
        assert f"{number.name}: finishing this step" in process.stderr.readline()
        process.send_signal(number)  # as `timeout` does: once to the process, and at once again to its group
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(number)
        try:
            assert process.wait(60) == 128 + number
        finally:
            process.kill()
