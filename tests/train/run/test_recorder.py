import json
import logging
import os
import struct
import sys
import types

import pytest
from tensorboardX.proto.event_pb2 import Event

from jlora.errors import JloraError
from train.run.recorder import NoRecorder, Recorder, read_metrics


def _events(run_dir):
    """TensorBoard events: records of (length, checksum, bytes, checksum)."""
    for path in sorted((run_dir / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            yield Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length


def _scalars(run_dir):
    return [(e.step, v.tag, v.simple_value) for e in _events(run_dir) for v in e.summary.value]


def _steps(run_dir):
    return [line["step"] for line in read_metrics(run_dir / "metrics.jsonl")]


def _run(run_dir, steps, **options):
    with Recorder(run_dir, **options) as recorder:
        for step in steps:
            recorder.log(step, {"loss": 1 / step, "learning_rate": 0.5}, "train")


def test_lines_and_tensorboard_events_hold_the_same_values(tmp_path):
    _run(tmp_path, [1, 2, 4])
    lines = read_metrics(tmp_path / "metrics.jsonl")
    from_lines = [(x["step"], key, x[key]) for x in lines for key in ("train/loss", "train/learning_rate")]
    assert from_lines == _scalars(tmp_path)
    assert len(from_lines) == 6
    assert [x["time"] for x in lines] == sorted(x["time"] for x in lines)


def test_each_line_is_on_disk_when_log_returns(tmp_path):
    with Recorder(tmp_path) as recorder:
        recorder.log(1, {"accuracy": 1}, "validation")
        assert read_metrics(tmp_path / "metrics.jsonl")[0]["validation/accuracy"] == 1.0


def test_values_that_are_not_finite_stay_standard_json_and_readable(tmp_path):
    values = {"loss": float("nan"), "norm": float("inf"), "low": float("-inf"), "rate": 1.0}
    with Recorder(tmp_path) as recorder:
        recorder.log(1, values, "train")

    def refuse(constant):
        raise AssertionError(constant)

    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert {key: line[f"train/{key}"] for key in values} == {
        "loss": None,
        "norm": None,
        "low": None,
        "rate": 1.0,
    }
    assert line["non_finite"] == {"train/loss": "nan", "train/norm": "inf", "train/low": "-inf"}


@pytest.mark.parametrize("tail", ["", '{"step": 6, "ti', '{"step": 6}', "\x00\x00\n"])
def test_resuming_gives_the_lines_of_a_run_that_was_not_killed(tmp_path, tail):
    _run(tmp_path, [1, 2, 3, 4, 5])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + tail)
    _run(tmp_path, [4, 5, 6], resume_step=3, resume_lines=3)
    assert _steps(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert 4 in [event.step for event in _events(tmp_path) if event.HasField("session_log")]


def test_resuming_before_the_first_checkpoint_starts_anew(tmp_path):
    _run(tmp_path, [1, 2])
    _run(tmp_path, [1], resume_step=0)
    assert _steps(tmp_path) == [1]


def test_lines_are_counted_not_steps(tmp_path):
    """Of one step there may be several lines, of which the checkpoint knew some."""
    with Recorder(tmp_path) as recorder:
        for prefix in ("train", "validation", "test"):
            recorder.log(1, {"loss": 1.0}, prefix)
        assert recorder.lines == 3
    with Recorder(tmp_path, resume_step=1, resume_lines=2) as recorder:
        assert recorder.lines == 2
        recorder.log(2, {"loss": 1.0}, "train")
        assert recorder.lines == 3
    assert [list(line)[-1] for line in read_metrics(tmp_path / "metrics.jsonl")] == [
        "train/loss", "validation/loss", "train/loss",
    ]  # fmt: skip


def test_lines_that_are_gone_are_said(tmp_path, caplog):
    _run(tmp_path, [1, 2])
    _run(tmp_path, [4], resume_step=3, resume_lines=3)
    assert "1 of the 3 lines up to the checkpoint are missing" in caplog.text
    assert _steps(tmp_path) == [1, 2, 4]


def test_a_full_disk_is_an_error_at_the_line_that_it_does_not_take(tmp_path):
    recorder = Recorder(tmp_path)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, recorder._file.fileno())
    os.close(full)
    with pytest.raises(JloraError, match=r"metrics\.jsonl: cannot be written: .*No space left.*--resume"):
        recorder.log(1, {"loss": 1.0}, "train")
    recorder.close()  # nothing hides the error


@pytest.mark.parametrize("resume_step", [None, 3])
def test_a_folder_in_the_place_of_the_record_is_named(resume_step, tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(JloraError, match=r"metrics\.jsonl: expected the record of the run, found a folder"):
        Recorder(tmp_path, resume_step=resume_step)


def test_who_does_not_record_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with NoRecorder() as recorder:
        recorder.log(1, {"loss": 1.0}, "train")
    assert recorder.lines == 0
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_is_refused_and_changes_nothing(tmp_path):
    _run(tmp_path, [1])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(JloraError, match="--resume"):
        Recorder(tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_folder_in_its_place_is_said(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(JloraError, match=r"metrics\.jsonl: expected the record of the run, found a folder"):
        Recorder(tmp_path, resume_step=3, resume_lines=3)


@pytest.mark.parametrize("damaged", ["{]", "[1]", "3", '{"loss": 1}', '{"step": "1"}', "[" * 5000, "9" * 5000])
def test_a_damaged_line_is_named(tmp_path, damaged):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{damaged}\n{{"step": 2}}\n')
    with pytest.raises(JloraError, match="line 2"):
        read_metrics(path)


@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_a_missing_tracker_is_named_before_anything_is_written(tmp_path, monkeypatch, tracker):
    monkeypatch.setitem(sys.modules, tracker, None)
    with pytest.raises(JloraError, match=rf"pip install {tracker},"):
        Recorder(tmp_path / "run", tracker=tracker)
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(JloraError, match="none, wandb or trackio"):
        Recorder(tmp_path, tracker="mlflow")


class _Tracker(types.SimpleNamespace):
    """Stands in for the package and for the run that its `init` returns."""

    def __init__(self, logged_in=True):
        super().__init__(logged_in=logged_in, starts=[], lines=[], finished=0)

    def login(self, prompt):
        if isinstance(self.logged_in, Exception):
            raise self.logged_in
        return self.logged_in

    def init(self, **options):
        self.starts.append(options)
        return self

    def log(self, values, step):
        self.lines.append((step, values))

    def finish(self):
        self.finished += 1


def _install(monkeypatch, name, tracker):
    monkeypatch.setitem(sys.modules, name, tracker)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return tracker


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_gets_the_finite_values_and_the_config(tmp_path, monkeypatch, name):
    tracker = _install(monkeypatch, name, _Tracker())
    with Recorder(tmp_path, tracker=name, project="mine", config={"seed": 1}) as recorder:
        recorder.log(7, {"loss": 2.0, "norm": float("nan")}, "train")
    assert tracker.lines == [(7, {"train/loss": 2.0})]
    assert tracker.finished == 1
    assert tracker.starts[0]["config"] == {"seed": 1}
    assert tracker.starts[0]["project"] == "mine"
    assert tracker.starts[0]["name"] == tmp_path.name


@pytest.mark.parametrize(
    ("logged_in", "mode"), [(True, "online"), (False, "offline"), (ConnectionError("no network"), "offline")]
)
def test_wandb_never_asks_and_goes_offline_by_itself(tmp_path, monkeypatch, logged_in, mode):
    tracker = _install(monkeypatch, "wandb", _Tracker(logged_in))
    _run(tmp_path, [1], tracker="wandb")
    assert [start["mode"] for start in tracker.starts] == [mode]
    assert tracker.lines


def test_resuming_goes_on_in_the_trackers_run(tmp_path, monkeypatch):
    wandb, trackio = (_install(monkeypatch, name, _Tracker()) for name in ("wandb", "trackio"))
    for name in ("wandb", "trackio"):
        _run(tmp_path / name, [1], tracker=name)
        _run(tmp_path / name, [2], tracker=name, resume_step=1)
    _run(tmp_path / "other", [1], tracker="wandb")
    first, resumed, other = (start["id"] for start in wandb.starts)
    assert first == resumed != other
    assert [start["resume"] for start in trackio.starts] == ["never", "allow"]


def test_a_tracker_that_fails_is_dropped_with_a_warning(tmp_path, monkeypatch, caplog):
    tracker = _install(monkeypatch, "trackio", _Tracker())

    def fail(values, step):
        raise ConnectionError("gone")

    tracker.log = fail
    with caplog.at_level(logging.WARNING):
        _run(tmp_path, [1, 2], tracker="trackio")
    assert _steps(tmp_path) == [1, 2]
    assert caplog.text.count("gone") == 1
