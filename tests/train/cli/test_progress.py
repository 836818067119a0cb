import fcntl
import io
import logging
import os
import re
import struct
import subprocess
import sys
import termios
import time

import pytest

from train.cli import progress
from train.cli.progress import Left, Progress, clock


class _Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def now(monkeypatch):
    """A clock that the test moves: now.time is in seconds."""

    class Clock:
        time = 100.0

        def monotonic(self):
            return self.time

    fake = Clock()
    monkeypatch.setattr(progress, "time", fake)
    return fake


def _train(bar, now, steps, seconds=0.5, examples=32, works=(1.0,), total=None, evaluations=0):
    """Steps of these works, one after the other, each of `seconds` for a work of 1."""
    for step in range(steps):
        work = works[step % len(works)]
        now.time += seconds * work
        left = Left((total or 0) - step - 1, evaluations)
        bar.update(1.0, examples, 1e-3, work, left)


def _lines(caplog):
    return [record.getMessage() for record in caplog.records]


def test_a_notebook_shows_the_bar():
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    source = (
        "from train.cli.progress import Left, Progress\n"
        "with Progress(3) as bar:\n"
        "    for step in range(3):\n"
        "        bar.update(1.0, 32, 1e-3, 1.0, Left(2 - step))"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbclient.NotebookClient(notebook, timeout=120, startup_timeout=120, kernel_name="python3").execute()
    shown = "".join(output.text for output in notebook.cells[0].outputs)
    assert "100%|" in shown
    assert "3/3 steps" in shown


def test_without_a_terminal_one_line_at_the_first_every_nth_and_the_last_step(caplog, now):
    stream = io.StringIO()
    with caplog.at_level(logging.INFO), Progress(25, log_every=10, stream=stream, per_epoch=5) as bar:
        _train(bar, now, 25, total=25)
    assert [line.split()[1] for line in _lines(caplog)] == ["1/25", "10/25", "20/25", "25/25"]
    assert _lines(caplog)[1] == (
        "step 10/25  loss 1.0000  epoch 2.00  lr 1.00e-03  64 examples/s  0:05 gone  0:08 left"
    )
    assert stream.getvalue() == ""


def test_rate_and_time_left_do_not_know_how_long_was_compiled(now):
    quick, slow = Progress(100, log_every=10), Progress(100, log_every=10)
    _train(quick, now, 50, total=100)
    for _ in range(5):
        with slow.compiling("training, 64 tokens a row"):
            now.time += 300
        _train(slow, now, 10, total=60)
    assert (slow.per_second, slow.seconds_left) == pytest.approx((quick.per_second, quick.seconds_left))
    assert (slow.per_second, slow.seconds_left) == pytest.approx((64.0, 25.0))


def test_steps_beside_a_compilation_count_until_there_are_others(now):
    busy = True
    bar = Progress(100, log_every=10, is_compiling=lambda: busy)
    _train(bar, now, 5, seconds=2.0, total=100)
    assert (bar.per_second, bar.seconds_left) == pytest.approx((16.0, 190.0))
    busy = False
    _train(bar, now, 1, seconds=2.0, total=95)  # it compiled when this step began
    _train(bar, now, 14, total=94)
    assert (bar.per_second, bar.seconds_left) == pytest.approx((64.0, 40.0))


def test_time_left_goes_by_the_work_and_not_by_the_steps(now):
    bar = Progress(100, log_every=10)
    _train(bar, now, 20, works=(4.0, 1.0, 1.0))
    bar.update(1.0, 32, 1e-3, 0.0, Left(7.0))
    assert bar.seconds_left == pytest.approx(3.5)


def test_pauses_leave_the_rate_alone_but_not_the_time_left(now):
    bar = Progress(100, log_every=10, evaluation=30.0)
    _train(bar, now, 40, total=100, evaluations=2)
    assert bar.seconds_left == pytest.approx(60 * 0.5 + 2 * 30 * 0.5)  # not timed yet
    with bar.pause("evaluation"), bar.compiling("evaluation, 64 tokens a row"):
        now.time += 1000
    with bar.pause("evaluation"):
        now.time += 44
    _train(bar, now, 10, total=60, evaluations=2)
    assert bar.per_second == pytest.approx(64.0)
    assert bar.seconds_left == pytest.approx(50 * 0.5 + 2 * 22)


def test_checkpoints_to_come_take_what_they_took(now):
    bar = Progress(100, log_every=10)
    _train(bar, now, 20)
    with bar.pause("checkpoint"):
        now.time += 3
    bar.update(1.0, 32, 1e-3, 1.0, Left(0.0, 0, 5))
    assert bar.seconds_left == pytest.approx(15)


def test_waiting_for_a_compilation_is_said_and_the_bar_then_as_before(caplog, now):
    stream = _Terminal()
    with caplog.at_level(logging.INFO):
        with Progress(20, log_every=10, stream=io.StringIO()) as bar, bar.compiling("training, 64 tokens a row"):
            pass
        with Progress(20, log_every=10, stream=stream) as bar:
            _train(bar, now, 10)
            with bar.compiling("training, 64 tokens a row"):
                assert stream.getvalue().count("loss") >= 2
    assert _lines(caplog) == ["compiling: training, 64 tokens a row"]
    shown = stream.getvalue()
    assert "loss 1.0000" in shown.partition("compiling: training, 64 tokens a row")[0]
    assert "loss 1.0000" in shown.rpartition("compiling: training, 64 tokens a row")[2]


def test_the_bars_clock_goes_on_while_a_program_is_compiled(monkeypatch):
    monkeypatch.setattr(progress, "_TICK_SECONDS", 0.01)
    stream = _Terminal()
    with Progress(20, stream=stream) as bar, bar.compiling("training"):
        deadline = time.monotonic() + 60
        while stream.getvalue().count("compiling: training") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert stream.getvalue().count("compiling: training") >= 3


def test_a_terminal_without_columns_gets_lines(caplog, now):
    leader, follower = os.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
    with open(follower, "w") as stream, caplog.at_level(logging.INFO), Progress(2, stream=stream) as bar:
        _train(bar, now, 2)
    os.close(leader)
    assert len(_lines(caplog)) == 2


def test_how_far_an_evaluation_is_is_in_the_bar(now):
    stream = _Terminal()
    with Progress(20, log_every=10, stream=stream) as bar:
        _train(bar, now, 10)
        with bar.counting("evaluating", 3) as tick:
            for _ in range(3):
                now.time += 1
                tick()
    shown = stream.getvalue()
    assert all(f"evaluating {done}/3" in shown for done in range(3))
    assert "loss 1.0000" in shown.rpartition("evaluating")[2]


def test_the_rate_follows_a_change_smoothly(now):
    bar = Progress(1000, log_every=10)
    _train(bar, now, 200, seconds=1.0)
    before = bar.per_second
    _train(bar, now, 10, seconds=0.5)
    after_one_window = bar.per_second
    _train(bar, now, 500, seconds=0.5)
    assert pytest.approx(before) == 32
    assert before < after_one_window < 48
    assert bar.per_second == pytest.approx(64, rel=0.01)


def test_a_resumed_run_counts_from_its_step(caplog, now):
    with caplog.at_level(logging.INFO), Progress(30, start=20, log_every=10, stream=io.StringIO()) as bar:
        _train(bar, now, 10, total=10)
    assert [line.split()[1] for line in _lines(caplog)] == ["21/30", "30/30"]
    assert bar.seconds_left == 0


def test_the_loss_is_read_only_when_it_is_shown(now):
    read_at = set()

    class Loss:
        def __float__(self):
            read_at.add(bar._step)
            return 0.5

    with Progress(20, log_every=10, stream=io.StringIO()) as bar:
        for _ in range(20):
            bar.update(Loss(), 8, 1e-3, 1.0, Left(0.0))
    assert read_at == {1, 10, 20}


def test_the_loss_shown_is_the_mean_since_the_last_line(caplog, now):
    caplog.set_level(logging.INFO)
    with Progress(20, log_every=10, stream=io.StringIO()) as bar:
        for step in range(1, 21):
            bar.update(float(step), 8, 1e-3, 1.0, Left(0.0))
    assert [message.split()[3] for message in caplog.messages] == ["1.0000", "6.0000", "15.5000"]


def test_a_terminal_gets_a_bar_and_no_lines(caplog, now):
    stream = _Terminal()
    with caplog.at_level(logging.INFO), Progress(20, log_every=10, stream=stream) as bar:
        _train(bar, now, 20, total=20)
    shown = stream.getvalue()
    assert "20/20 steps" in shown
    assert "loss 1.0000" in shown
    assert "64 examples/s" in shown
    assert "0:00 left" in shown
    assert "epoch 20.00  lr 1.00e-03" in shown
    assert "steps  00:00  0:" in shown  # tqdm's own clock, then what is left
    assert not caplog.records


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3661, "1:01:01")])
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_logging_shows_ours_and_of_others_only_warnings():
    script = (
        "import logging, sys; from train.cli.progress import configure_logging\n"
        "configure_logging(); sys.modules['torch'] = None\n"
        "import absl.logging, transformers\n"
        "for name in ('train.x', 'jlora.y', '__main__', 'absl', 'httpx'):\n"
        "    logging.getLogger(name).info(name + ' informs')\n"
        "logging.getLogger('asyncio').error('Future exception was never retrieved')\n"
        "logging.getLogger('httpx').warning('httpx warns')\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = [re.fullmatch(r"\d\d:\d\d:\d\d (.*)", line)[1] for line in result.stderr.splitlines()]
    assert lines == [
        "train.x informs",
        "jlora.y informs",
        "__main__ informs",
        "httpx warns",
    ]
