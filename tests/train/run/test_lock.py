import errno
import os
import signal
import subprocess
import sys

import pytest

from jlora.errors import JloraError
from tests.support.training import tiny
from train.run.lock import NAME, hold_lock, require_free

_HOLD = """
import sys, time
from pathlib import Path
from train.run.lock import hold_lock
with hold_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_held_folder_is_refused_by_the_holders_name_until_sigkill_frees_it(tmp_path):
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=tiny.ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        expected = f"process {holder.pid} on {os.uname().nodename} is training in it"
        for refused in (lambda: require_free(tmp_path), lambda: hold_lock(tmp_path).__enter__()):
            with pytest.raises(JloraError, match=expected):
                refused()
        holder.send_signal(signal.SIGKILL)
    with hold_lock(tmp_path):
        pass


def test_a_folder_is_made_and_free_again_afterwards(tmp_path):
    folder = tmp_path / "a" / "run"
    require_free(folder)
    assert not folder.exists()
    with hold_lock(folder):
        assert [path.name for path in folder.iterdir()] == [NAME]
    require_free(folder)
    with hold_lock(folder):
        pass


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(JloraError, match="a folder that can be made"), hold_lock(tmp_path / "file" / "run"):
        pass


def test_a_holder_that_has_not_said_who_it_is(tmp_path):
    with hold_lock(tmp_path):
        (tmp_path / NAME).write_text("")
        with pytest.raises(JloraError, match="another process is training in it"):
            require_free(tmp_path)


def test_a_folder_that_cannot_be_locked_is_said(tmp_path):
    (tmp_path / NAME).mkdir()
    for refused in (lambda: require_free(tmp_path), lambda: hold_lock(tmp_path).__enter__()):
        with pytest.raises(JloraError, match=f"{tmp_path}: expected a folder that can be written, found"):
            refused()


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, caplog):
    def missing(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", missing)
    with hold_lock(tmp_path):
        pass
    assert "this file system has no locks" in caplog.text
    with hold_lock(tmp_path):  # as after SIGKILL, nothing is left that locks
        pass
