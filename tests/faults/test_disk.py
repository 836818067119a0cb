"""A disk that is full or read-only while a checkpoint or a line of the record is written."""

import contextlib
import os
import shutil
import subprocess

import pytest
import runs
import tiny


@contextlib.contextmanager
def _mounted(folder, megabytes):
    """A small file system of its own in place of the folder, with the folder's contents."""
    before = folder.with_name(f"{folder.name}.before")
    folder.rename(before)
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    done = subprocess.run(["mount", *options], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        shutil.copytree(before, folder, dirs_exist_ok=True)
        yield
        shutil.rmtree(before)
        shutil.copytree(folder, before)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()
    before.rename(folder)


def _fill(file):
    """Writes until the disk is full."""
    with open(file, "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(bytes(4096)):
            pass


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may mount a tmpfs")
@pytest.mark.parametrize("trainer", runs.TRAINERS)
def test_a_disk_that_takes_nothing_costs_nothing(trainer, undisturbed, tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    checkpoints = folder / "checkpoints"

    def resumed(fault=None):
        log.write_text("")
        return runs.run(trainer, runs.TRAINERS[trainer](folder, "--resume"), log, fault)

    assert resumed(("batch", 6, 0.0)) == -9
    whole = tiny.contents(runs.newest(folder))
    with _mounted(checkpoints, 4):
        _fill(checkpoints / "filler")
        assert resumed() == 2
        assert "a checkpoint could not be written" in log.read_text()
        assert "No space left on device" in log.read_text()
        assert "Make room or lend the right to write, then go on with --resume" in log.read_text()
        assert tiny.contents(runs.newest(folder)) == whole
        (checkpoints / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,ro", str(checkpoints)], check=True)
        assert resumed() == 2
        assert "Read-only file system" in log.read_text()
        assert tiny.contents(runs.newest(folder)) == whole
        subprocess.run(["mount", "-o", "remount,rw", str(checkpoints)], check=True)
    with _mounted(folder, 8):
        _fill(folder / "filler")
        assert resumed() == 2
        assert "error: " in log.read_text()
        assert "Traceback" not in log.read_text()
        assert tiny.contents(runs.newest(folder)) == whole
        (folder / "filler").unlink()
    assert resumed() == 0, log.read_text()
    runs.assert_same(folder, undisturbed(trainer)[0])
