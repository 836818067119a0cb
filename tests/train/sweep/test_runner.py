"""`jlora sweep` on a tiny encoder: each run is what it is alone, a killed sweep goes on, halving ends the worse."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from tests.support.training import tiny, tiny_lm
from train.run.recorder import read_metrics
from train.sweep import __main__ as sweep
from train.sweep import runner
from train.sweep.train_stage import _Stage

COMMON = ["lora.target_modules=query,value", "train.max_steps=6", "train.warmup_steps=0", "train.eval_every=3"]
TWO_BY_TWO = "parameters: {lora.r: [1, 3], train.learning_rate: [0.01, 1e+30]}"


def _sweep(output: Path, text: str, *more: str) -> int:
    file = output.with_suffix(".yaml")
    file.write_text(text, encoding="utf-8")
    return tiny.call(sweep.main, tiny.arguments(output, *COMMON, "--sweep", str(file), *more))


@pytest.fixture(scope="module")
def finished():
    output = Path(tempfile.mkdtemp(dir=tiny.HOME)) / "sweep"
    assert _sweep(output, TWO_BY_TWO) == 0
    return output


def test_a_run_is_what_it_is_alone(finished, tmp_path):
    together = finished / "r=3,learning_rate=0.01"
    alone = tiny.train(tmp_path / "alone", *COMMON, "lora.r=3", "train.learning_rate=0.01", "export.merged=false")
    found, expected = tiny.tensors(together / "adapter"), tiny.tensors(alone / "adapter")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, rtol=1e-5, atol=1e-5 * np.abs(tensor).max(), err_msg=name)
    assert {path.name for path in together.iterdir()} - {"checkpoints"} == {path.name for path in alone.iterdir()} - {
        "checkpoints",
        ".lock",
    }
    reports = tiny.report(together), tiny.report(alone)
    assert reports[0]["sweep"]["values"] == {"lora.r": 3, "train.learning_rate": 0.01}
    assert reports[0]["parameters"] == reports[1]["parameters"]
    assert reports[0]["best"]["step"] == reports[1]["best"]["step"]
    lines = [read_metrics(folder / "metrics.jsonl") for folder in (together, alone)]
    assert [sorted(line.keys()) for line in lines[0]] == [sorted(line.keys()) for line in lines[1]]
    for name in ("train/loss", "validation/loss", "start/loss", "train/learning_rate"):
        one, other = ([line[name] for line in of_run if name in line] for of_run in lines)
        np.testing.assert_allclose(one, other, rtol=1e-4)


def test_a_run_that_diverges_is_marked(finished):
    report = tiny.report(finished / "r=1,learning_rate=1e+30")
    assert report["metrics"] == {}
    assert report["sweep"]["ended"].startswith("diverged at step ")
    with (finished / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["ended"][:8] for row in rows] == ["at its l"] * 2 + ["diverged"] * 2


def test_the_best_run_is_exported_whole(finished):
    best = tiny.report(finished / "best")["sweep"]["point"]
    assert "1e+30" not in best
    found, expected = (tiny.tensors(finished / name / "adapter") for name in ("best", best))
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor)
    assert (finished / "best" / "merged" / "model.safetensors").exists()
    assert (finished / "sweep.png").exists()
    assert (finished / "table.md").read_text(encoding="utf-8").count("\n") == 6


def test_a_killed_sweep_goes_on(finished, tmp_path):
    output, steps = tmp_path / "killed", []
    make_step = _Stage.make_step

    def killed(stage, step, planned):
        steps.append(planned)
        if len(steps) == 5:
            raise KeyboardInterrupt
        make_step(stage, step, planned)

    with mock.patch.object(_Stage, "make_step", killed):
        assert _sweep(output, TWO_BY_TWO) == 130
    assert _sweep(output, TWO_BY_TWO) == 2  # neither --resume nor --overwrite
    assert _sweep(output, "parameters: {lora.r: [1, 2]}", "--resume") == 2
    assert _sweep(output, TWO_BY_TWO, "--resume") == 0
    for name in ("r=1,learning_rate=0.01", "r=3,learning_rate=0.01"):
        found, expected = (tiny.tensors(folder / name / "adapter") for folder in (output, finished))
        for path, tensor in expected.items():
            np.testing.assert_array_equal(found[path], tensor)
        steps_of = [
            [line["step"] for line in read_metrics(folder / name / "metrics.jsonl")] for folder in (output, finished)
        ]
        assert steps_of[0] == steps_of[1]


def test_a_method_without_a_rank_may_be_the_best(tmp_path):
    points = "{full: {method: full, train.learning_rate: 0.01}, low: {lora.r: 1, train.learning_rate: 1e-9}}"
    output = tmp_path / "methods"
    assert _sweep(output, f"search: points\npoints: {points}", "export.merged=false") == 0
    assert tiny.report(output / "best")["sweep"]["point"] == "full"
    assert (output / "best" / "merged" / "model.safetensors").exists()
    with (output / "table.csv").open(encoding="utf-8") as file:
        ranks = {row["run"]: row["lora.r"] for row in csv.DictReader(file)}
    assert ranks == {"full": "", "low": "1"}


def test_a_signal_after_the_last_step_stops_nothing(tmp_path, capsys):
    conclude = runner._Sweep.conclude

    def signalled(sweep):
        os.kill(os.getpid(), signal.SIGTERM)
        conclude(sweep)

    with mock.patch.object(runner._Sweep, "conclude", signalled):
        assert _sweep(tmp_path / "late", "parameters: {lora.r: [1, 2]}") == 0
    assert "table.md  table.csv  sweep.png  best/, and a folder for each run" in capsys.readouterr().err


def test_halving_ends_the_worse_runs(tmp_path):
    text = "search: halving\nhalving: {at: [2, 4], keep: 0.5}\n" + TWO_BY_TWO.replace("1e+30", "1e-3")
    output = tmp_path / "halved"
    assert _sweep(output, text) == 0
    reports = [json.loads(file.read_text(encoding="utf-8")) for file in output.glob("r=*/report.json")]
    ended = sorted(report["sweep"]["ended"] for report in reports)
    assert ended == ["at its last step, 6", "halved at step 2", "halved at step 2", "halved at step 4"]


def test_halving_refuses_runs_with_validation_rows_of_their_own(tmp_path, capsys):
    text = "search: halving\nhalving: {at: [2]}\nparameters: {seed: [0, 1]}"
    assert _sweep(tmp_path / "halved", text, "data.validation=null") == 2
    assert "expected runs with the same validation tokens" in capsys.readouterr().err
    assert not (tmp_path / "halved").exists()


def test_dry_run_writes_nothing(tmp_path, capsys):
    assert _sweep(tmp_path / "planned", TWO_BY_TWO, "--dry-run") == 0
    assert "4 runs in 1 groups" in capsys.readouterr().out
    assert not (tmp_path / "planned").exists()


def test_language_models_are_swept_too(tmp_path):
    file = tmp_path / "sweep.yaml"
    file.write_text("parameters: {lora.r: [1, 2], seed: [0, 1]}", encoding="utf-8")
    more = ["samples.count=0", "train.learning_rate=1e-2", "export.merged=false"]
    output = tmp_path / "sweep"
    assert tiny.call(sweep.main, [*tiny_lm.arguments(output, *more), "--sweep", file]) == 0
    alone = tiny_lm.train(tmp_path / "alone", *more, "lora.r=2", "seed=1")
    together = output / "r=2,seed=1"
    for name, tensor in tiny.tensors(alone / "adapter").items():
        found = tiny.tensors(together / "adapter")[name]
        np.testing.assert_allclose(found, tensor, rtol=1e-5, atol=1e-5 * np.abs(tensor).max(), err_msg=name)
    assert tiny.report(together)["metrics"]["validation"].keys() == tiny.report(alone)["metrics"]["validation"].keys()


def test_halving_at_a_run_s_end_is_refused(tmp_path, capsys):
    text = "search: halving\nhalving: {at: [2, 6]}\nparameters: {lora.r: [1, 2]}"
    assert _sweep(tmp_path / "halved", text) == 2
    assert "halving.at: expected steps before 6, a run's last one; found 6" in capsys.readouterr().err


def test_a_finished_sweep_whose_best_run_was_deleted_says_so(finished, tmp_path, capsys):
    copied = tmp_path / "copied"
    shutil.copytree(finished, copied)
    shutil.rmtree(copied / "best")
    assert _sweep(copied, TWO_BY_TWO, "--resume") == 2
    assert "a sweep that has ended deletes them" in capsys.readouterr().err
