import os
import signal
import subprocess
import sys
import time

import pytest
import tiny

from train.signals import Cut, Stopped, listening

NUMBERS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


def _signal(number):
    os.kill(os.getpid(), number)


@NUMBERS
def test_a_signal_is_noted_and_raised_at_the_end(number):
    def work():
        with listening() as stop:
            assert not stop.requested()
            _signal(number)
            assert stop.requested()
            assert stop.requested()

    with pytest.raises(Stopped, match=number.name) as caught:
        work()
    assert caught.value.code == 128 + number


def test_without_a_signal_nothing_is_raised_and_the_handlers_are_those_of_before():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with listening() as stop:
        assert not stop.requested()
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


_BUSY = """
import hashlib
from train.signals import listening
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
        assert f"{number.name}: this step ends" in process.stderr.readline()
        process.send_signal(number)
        try:
            assert process.wait(60) == 128 + number
        finally:
            process.kill()
