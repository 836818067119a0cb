"""Runs with rows of their own train in one program, and each is what it is alone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from jlora.files import yaml12
from tests.support.training import tiny, tiny_lm
from train.run.recorder import read_metrics
from train.sweep import __main__ as sweep
from train.sweep import runner
from train.sweep.train_stage import _Stage

EPOCHS = ["train.max_steps=null", "train.epochs=2", "train.learning_rate=1e-2", "export.merged=false"]
PACKED = [*EPOCHS, "data.packing=true", "lora.lora_dropout=0.1", "data.sample_by=line"]
"""Rows of one length: the batches, and with them the masks of dropout, have the shapes that they have alone."""
OF_ANY_LENGTH = [*EPOCHS, "data.sample_by=line", "data.max_length=64", "train.bucket_count=null"]


def _points():
    """Three texts of 40, 16 and 28 lines: 16, 8 and 12 steps of two epochs where a row has a line."""
    words = {"long": (400, 0), "short": (160, 1), "middle": (280, 2)}
    return {name: {"data.train": str(tiny_lm.text_file(*one))} for name, one in words.items()}


def _train_together(output, points, more, *flags):
    file = output.with_suffix(".yaml")
    file.write_text(yaml12.dump({"search": "points", "points": points}), encoding="utf-8")
    return tiny.call(sweep.main, [*tiny_lm.arguments(output, *more), "--sweep", file, *flags])


def _assert_as_alone(together, alone):
    found, expected = tiny.tensors(together / "adapter"), tiny.tensors(alone / "adapter")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert np.linalg.norm(found[name] - tensor) < 1e-5 * np.linalg.norm(tensor), name
    reports = tiny.report(together), tiny.report(alone)
    for part in ("rows", "learnt_tokens", "batch_lengths", "parameters"):
        assert reports[0][part] == reports[1][part]
    assert reports[0]["best"]["step"] == reports[1]["best"]["step"]
    lines = [read_metrics(folder / "metrics.jsonl") for folder in (together, alone)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    for name in ("train/loss", "validation/loss", "start/loss", "train/learning_rate", "train/epoch"):
        one, other = ([line[name] for line in of_run if name in line] for of_run in lines)
        np.testing.assert_allclose(one, other, rtol=1e-5)


@pytest.fixture(scope="module")
def packed():
    """The folder of the sweep with packed rows."""
    output = Path(tempfile.mkdtemp(dir=tiny.HOME)) / "together"
    with mock.patch.object(runner, "open_group", wraps=runner.open_group) as opened:
        assert _train_together(output, _points(), PACKED) == 0
    assert opened.call_count == 1  # one program for all
    return output


def test_packed_runs_are_what_they_are_alone(packed, tmp_path):
    for name, values in _points().items():
        alone = tiny_lm.train(tmp_path / name, *PACKED, *(f"{key}={value}" for key, value in values.items()))
        _assert_as_alone(packed / name, alone)


def test_runs_with_rows_of_any_length_are_what_they_are_alone(tmp_path):
    points, output = _points(), tmp_path / "together"
    assert _train_together(output, points, OF_ANY_LENGTH) == 0
    for name in ("short", "middle"):
        alone = tiny_lm.train(tmp_path / name, *OF_ANY_LENGTH, f"data.train={points[name]['data.train']}")
        _assert_as_alone(output / name, alone)


def test_none_is_the_best(packed):
    """Losses on different texts say nothing of the runs."""
    steps = {tiny.report(packed / name)["sweep"]["ended"] for name in _points()}
    assert len(steps) == 3  # each ends at a step of its own
    assert not (packed / "best").exists()
    assert not (packed / "sweep.png").exists()
    table = (packed / "table.md").read_text(encoding="utf-8").splitlines()
    assert [line.split("|")[-2].strip() for line in table[2:]] == list(_points())


def test_a_killed_sweep_goes_on_after_a_run_has_ended(packed, tmp_path):
    points, killed = _points(), tmp_path / "killed"
    make_step, made = _Stage.make_step, []

    def make_some(stage, step, planned):
        made.append(len(stage.members))
        if made.count(2) > 2:
            raise KeyboardInterrupt
        make_step(stage, step, planned)

    with mock.patch.object(_Stage, "make_step", make_some):
        assert _train_together(killed, points, PACKED) == 130
    assert [(killed / name / "report.json").exists() for name in points] == [False, True, False]
    assert _train_together(killed, points, PACKED, "--resume") == 0
    for name in points:
        found, expected = (tiny.tensors(folder / name / "adapter") for folder in (killed, packed))
        for path, tensor in expected.items():
            np.testing.assert_array_equal(found[path], tensor)
    with mock.patch.object(runner, "open_data", side_effect=AssertionError("reads data")):
        assert _train_together(killed, points, PACKED, "--resume") == 0  # finished: nothing is read again


def test_halving_needs_the_same_validation_rows(tmp_path, capsys):
    texts = [one["data.train"] for one in _points().values()]
    file = tmp_path / "halving.yaml"
    search = {"search": "halving", "halving": {"at": [1]}, "parameters": {"data.train": texts}}
    file.write_text(yaml12.dump(search), encoding="utf-8")
    assert tiny.call(sweep.main, [*tiny_lm.arguments(tmp_path / "out", *PACKED), "--sweep", file]) == 2
    assert "halving: expected runs with the same validation tokens" in capsys.readouterr().err


def test_classifiers_with_other_labels_are_groups_of_their_own(tmp_path, capsys):
    file = tmp_path / "sweep.yaml"
    three = tmp_path / "three.csv"
    three.write_text("text,label\n" + "good film,a\nbad film,b\nlong film,c\n" * 8, encoding="utf-8")
    files = {"data.train": [str(tiny.data_file(24)), str(tiny.data_file(30)), str(three)]}
    file.write_text(yaml12.dump({"parameters": files}), encoding="utf-8")
    argv = [*tiny.arguments(tmp_path / "out", "data.validation=null"), "--sweep", file, "--dry-run"]
    assert tiny.call(sweep.main, argv) == 0
    assert "3 runs in 2 groups" in capsys.readouterr().out
