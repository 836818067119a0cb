"""A disk that is full or read-only while a checkpoint, a line of the record or an export is written."""

import contextlib
import functools
import math
import os
import shutil
import subprocess

import pytest

import jlora
from jlora.errors import JloraError
from tests.runs.faults import runs
from tests.support.training import lm_folders, tiny
from train import export

pytestmark = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root may mount a tmpfs")

EXPORTS = {"merged": ["--out"], "vllm": ["--vllm", "--out"], "llama.cpp": ["--gguf-lora"]}
"""{form: the flags before the place that it is written to}."""


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
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()
    before.rename(folder)


def _fill(file, but=0):
    """Writes until the disk is full, but for so many bytes."""
    with open(file, "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(bytes(4096)):
            pass
    os.truncate(file, file.stat().st_size - but)


@pytest.mark.parametrize("trainer", runs.EITHER)
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
        assert "Free disk space or allow the folder to be written, then go on with --resume" in log.read_text()
        assert "Traceback" not in log.read_text()
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


def _export(form, place):
    argv = ["--adapter", lm_folders.run_folder() / "adapter", "--overwrite", *EXPORTS[form], place]
    return tiny.call(export.main, argv)


@functools.cache
def _exported(form):
    """The folder that holds such an export."""
    out = tiny.HOME / f"exported {form}"
    assert _export(form, out / "lora.gguf" if form == "llama.cpp" else out) == 0
    return out


@pytest.mark.parametrize("over", ["nothing", "an older one"])
@pytest.mark.parametrize("share", [0, 0.5, 0.9])
@pytest.mark.parametrize("form", EXPORTS)
def test_an_export_is_whole_or_changes_nothing(form, share, over, tmp_path, capsys):
    """On a disk with room for this share of its pages."""
    disk, out = tmp_path / "disk", tmp_path / "disk/out"
    place = out / "lora.gguf" if form == "llama.cpp" else out
    shutil.copytree(_exported(form), out)
    whole = tiny.contents(out)
    for name in whole:
        (out / name).write_bytes(b"older") if over == "an older one" else (out / name).unlink()
    before, pages = tiny.contents(out), sum(math.ceil(len(data) / 4096) for data in whole.values())
    with _mounted(disk, 1):
        _fill(disk / "filler", but=4096 * int(share * pages))
        capsys.readouterr()
        code, said = _export(form, place), capsys.readouterr().err
        assert tiny.contents(out) == (before if code else whole)
    assert code == 2 or share
    if code:
        assert "No space left on device" in said
        assert str(out) in said
        assert "free disk space" in said


@pytest.mark.parametrize("save", ["save_base", "save_adapter", "save_gguf_lora"])
def test_the_library_says_where_there_was_no_room(save, tmp_path):
    model, base, adapter, lora = lm_folders.adapted()
    out = tmp_path / "disk/out"
    arguments = {
        "save_base": (out, model, base),
        "save_adapter": (out, adapter, lora),
        "save_gguf_lora": (out / "lora.gguf", adapter, model.config),
    }
    out.parent.mkdir()
    with _mounted(out.parent, 1):
        _fill(out.parent / "filler")
        with pytest.raises((JloraError, OSError), match="No space left on device") as caught:
            getattr(jlora, save)(*arguments[save])
        assert tiny.contents(out) == {}
    assert str(out) in str(caught.value)
