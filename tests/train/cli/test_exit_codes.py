import errno
import logging
import signal
import subprocess
import sys

import pytest

from jlora.errors import JloraError
from tests.support.training import tiny
from train.cli.exit_codes import exit_code, require_new, require_new_file
from train.cli.signals import Stopped


def _raises(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("work", "code", "shown"),
    [
        (lambda: None, 0, ""),
        (_raises(JloraError("lora.r: expected 1")), 2, "error: lora.r: expected 1\n"),
        (
            _raises(MemoryError("8 TiB")),
            2,
            "error: out of memory: 8 TiB. Ask for less at once, or use a larger machine\n",
        ),
        (_raises(KeyboardInterrupt()), 130, "stopped\n"),
        (_raises(Stopped(signal.SIGTERM)), 143, "stopped\n"),
        (_raises(Stopped(signal.SIGINT)), 130, "stopped\n"),
        (
            _raises(OSError(errno.ENOSPC, "No space left on device", "run/x")),
            2,
            "error: [Errno 28] No space left on device: 'run/x': free disk space, or name a folder that can be"
            " written\n",
        ),
        (
            _raises(PermissionError(errno.EACCES, "Permission denied", "run/x")),
            2,
            "error: [Errno 13] Permission denied: 'run/x': allow it, or name another place\n",
        ),
        (
            _raises(IsADirectoryError(errno.EISDIR, "Is a directory", "run/x")),
            2,
            "error: [Errno 21] Is a directory: 'run/x'\n",
        ),
        (
            _raises(OSError(errno.ENAMETOOLONG, "File name too long", "\x1b[2J")),
            2,
            "error: [Errno 36] File name too long: '\\x1b[2J'\n",
        ),
    ],
)
def test_exit_codes(work, code, shown, capsys):
    with tiny.isolated():
        assert exit_code(work, interrupted="stopped") == code
    assert capsys.readouterr().err == shown


def test_a_fault_of_ours_is_shown_whole():
    for error in (ZeroDivisionError(), OSError(errno.EIO, "Input/output error")):
        with tiny.isolated(), pytest.raises(type(error)):
            exit_code(_raises(error))


@pytest.mark.parametrize("verbose", [True, False])
def test_the_log_is_set_up_before_the_work(verbose):
    def work():
        assert logging.getLogger("train").isEnabledFor(logging.DEBUG) is verbose

    with tiny.isolated():
        assert exit_code(work, verbose=verbose) == 0


def test_a_folder_that_holds_something_needs_overwrite(tmp_path):
    require_new(tmp_path / "new", overwrite=False)
    require_new(tmp_path, overwrite=False)
    (tmp_path / "file").touch()
    require_new(tmp_path, overwrite=True)
    with pytest.raises(JloraError, match="--overwrite"):
        require_new(tmp_path, overwrite=False)


@pytest.mark.parametrize("mark", ["manifest.json", "environment.json", ".lock"])
def test_the_folder_of_a_run_is_never_written_into(mark, tmp_path):
    (tmp_path / "config.yaml").touch()
    require_new(tmp_path, overwrite=True)  # a user's
    (tmp_path / mark).touch()
    for overwrite in (True, False):
        with pytest.raises(JloraError, match=f"^--out: {tmp_path}: is the folder of a run.*; name another place$"):
            require_new(tmp_path, overwrite)
    require_new(tmp_path / "exported", overwrite=False)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_what_stdout_cannot_encode_is_no_error(encoding):
    code = "from train.cli.exit_codes import exit_code\nexit_code(lambda: print('« 日本 \\ud800 ok »'))"
    environment = tiny.environment() | {"PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT, env=environment, capture_output=True)
    shown = {"latin-1": "« ?? ? ok »", "ascii": "? ?? ? ok ?", "utf-8": "« 日本 ? ok »"}[encoding]
    assert (done.stdout.decode(encoding).strip(), done.stderr) == (shown, b"")


@pytest.mark.parametrize(
    ("said", "code"),
    [("exit_code(lambda: print('text ' * 100_000, flush=True))", 0), ("show('text ' * 100_000) or 7", 7)],
)
def test_a_reader_that_has_enough_is_no_error(said, code):
    """As `jlora generate ... | head -1`; what is shown so ends no work."""
    command = [sys.executable, "-c", f"from train.cli.exit_codes import exit_code, show\nraise SystemExit({said})"]
    with subprocess.Popen(command, cwd=tiny.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == code


def test_an_interruption_keeps_its_code_where_nobody_reads_it():
    """As Ctrl-C does under `2>&1 | tee log`, which it ends too."""
    code = """
from train.cli.exit_codes import exit_code
def work():
    input()
    raise KeyboardInterrupt
raise SystemExit(exit_code(work))
"""
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], cwd=tiny.ROOT, text=True, **pipes) as process:
        process.stderr.close()
        process.stdin.write("\n")
    assert process.returncode == 130


def test_a_file_and_a_folder_that_cannot_be_written_are_refused_early(tmp_path):
    (file := tmp_path / "out.csv").write_text("mine")
    require_new_file("--output", tmp_path / "new" / "out.csv", overwrite=False)
    require_new_file("--output", file, overwrite=True)
    for path, overwrite, message in [
        (file, False, "exists; name another file, or give --overwrite"),
        (tmp_path, True, "expected the name of a file, found a folder; name a file in it"),
        (file / "out.csv", True, "expected a folder .*out.csv or none, found a file; name another place"),
    ]:
        with pytest.raises(JloraError, match=f"^--output: {path}: {message}"):
            require_new_file("--output", path, overwrite)
    for path in (file, file / "inside"):
        with pytest.raises(JloraError, match=f"^--out: {path}: expected .* found a file"):
            require_new(path, overwrite=True)
