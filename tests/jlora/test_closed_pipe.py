import errno
import os
import subprocess
import sys

import pytest

from jlora.closed_pipe import end_quietly
from tests.support.training import tiny


def _run_unread(*command, both=False, buffered=True):
    """Runs the program into a pipe that nobody reads; returns its exit code and, unless it has no reader, stderr."""
    reading, writing = os.pipe()
    os.close(reading)
    errors = writing if both else subprocess.PIPE
    environment = tiny.environment() | {"PYTHONUNBUFFERED": "" if buffered else "1"}
    done = subprocess.run([sys.executable, *command], cwd=tiny.ROOT, env=environment, stdout=writing, stderr=errors)
    os.close(writing)
    return done.returncode, done.stderr or b""


COMMANDS = ["", "--version", "classify --help", "predict --help", "configs", "completion bash", "serve --help"]


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("command", [*COMMANDS, "no-such"])
def test_no_command_complains_of_output_that_nobody_reads(command, buffered):
    found, shown = _run_unread("-m", "jlora", *command.split(), buffered=buffered)
    assert found == (2 if command == "no-such" else 0)
    assert b"Traceback" not in shown
    assert b"BrokenPipe" not in shown
    assert bool(shown) is bool(found)


def test_errors_that_nobody_reads_keep_their_code():
    assert _run_unread("-m", "jlora", "no-such", both=True)[0] == 2
    assert _run_unread("-m", "train.books", both=True)[0] == 2
    assert _run_unread("-m", "train.lm", "--help") == (0, b"")


def test_a_pipe_of_something_else_is_an_error():
    def fail():
        raise BrokenPipeError("of a worker")

    with pytest.raises(BrokenPipeError, match="of a worker"):
        end_quietly(fail)
    with pytest.raises(SystemExit):
        end_quietly(lambda: sys.exit(3))
    assert end_quietly(lambda: 7) == 7


def test_output_to_a_full_disk_is_one_error(capsys):
    def fail():
        raise OSError(errno.ENOSPC, "No space left on device")

    assert end_quietly(fail) == 2
    assert capsys.readouterr().err.startswith("error: the output cannot be written: ")
    with pytest.raises(OSError, match="table"):
        end_quietly(lambda: os.stat("no/table"))
