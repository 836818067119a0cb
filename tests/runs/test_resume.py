"""A killed run that is resumed leaves, bit for bit, what the run leaves that was not killed."""

import json
import re
import shutil
import signal
from functools import partial

import pytest

from tests.support.training import processes, tiny
from train.classify import __main__ as classify

# Nine steps over four and a half epochs, dropout and accumulation on; evaluations and checkpoints fall on other steps.
_STEPS = [
    "train.max_steps=9",
    "train.batch_size=6",
    "train.gradient_accumulation_steps=2",
    "train.eval_every=4",
    "train.bucket_count=2",
    "train.checkpoint_every=3",
    "train.dropout=true",
    "lora.lora_dropout=0.1",
    "train.learning_rate=2e-2",
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return tiny.train(tmp_path_factory.mktemp("undisturbed") / "run", *_STEPS)


def _killed(step, arguments, log):
    """What train.classify says in a process of its own, which SIGKILL ends when its batch `step` comes."""
    log.unlink(missing_ok=True)
    killed = partial(processes.signal_at, step, signal.SIGKILL)
    assert processes.finish(processes.start("classify", arguments, log, killed)) == -9, log.read_text()
    return log.read_text()


def _learned(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "train/examples_per_second")} for line in lines]


def _assert_same(run, other):
    for name in ("adapter/adapter_model.safetensors", "merged/model.safetensors", "predictions.csv"):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name
    assert _learned(run) == _learned(other)
    for key in ("metrics", "best", "parameters", "rows"):
        assert tiny.report(run)[key] == tiny.report(other)[key]


def test_killed_twice_and_resumed_is_the_run_that_was_not_killed(undisturbed, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = [*tiny.arguments(run, *_STEPS), "--resume"]
    _killed(2, arguments, tmp_path / "log")
    assert (run / "config.yaml").exists()
    assert not any((run / "checkpoints").glob("*/arrays"))
    assert "no checkpoint yet: starting at step 0" in _killed(8, arguments, tmp_path / "log")
    assert not (run / "report.json").exists()
    assert tiny.call(classify.main, arguments) == 0
    # Step 6 where its checkpoint was whole before the kill; it is written while training goes on.
    assert re.search("resumed at step [36]$", capsys.readouterr().err, re.MULTILINE)
    _assert_same(run, undisturbed)


@pytest.mark.parametrize(
    "lost",
    [("report.json", "adapter/adapter_model.safetensors", "merged/model.safetensors"), ("merged/model.safetensors",)],
)
def test_where_exports_are_missing_it_only_exports(lost, undisturbed, tmp_path, capsys):
    """As of a run that was killed before its report, or one whose files were deleted."""
    run = tmp_path / "run"
    shutil.copytree(undisturbed, run)
    before = _exports(run)
    for name in lost:
        (run / name).unlink()
    capsys.readouterr()
    tiny.train(run, *_STEPS, "--resume")
    shown = capsys.readouterr().err
    assert "resumed at step 9" in shown
    assert "lr " not in shown
    assert _exports(run) == before


def _exports(run):
    """All files but the cards, which name the folder."""
    found = tiny.contents(run / "adapter") | tiny.contents(run / "merged")
    return {name: data for name, data in found.items() if name != "README.md"}


def test_a_finished_run_says_so_and_is_left_alone(undisturbed, capsys):
    before = tiny.contents(undisturbed)
    capsys.readouterr()
    tiny.train(undisturbed, *_STEPS, "--resume")
    assert "this run is finished, nothing to do" in capsys.readouterr().err
    assert tiny.contents(undisturbed) == before


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: f"data.train={tiny.data_file(24, 5)}", "expected the data that the run was started with"),
        (lambda: f"model={tiny.model_folder('bert', num_hidden_layers=1)}", "expected the base that the run was"),
    ],
)
def test_other_contents_under_an_allowed_name_are_refused_and_the_run_is_left_alone(other, said, undisturbed, capsys):
    before = tiny.contents(undisturbed)
    assert tiny.call(classify.main, tiny.arguments(undisturbed, *_STEPS, "--resume", other())) == 2
    assert said in capsys.readouterr().err
    after = tiny.contents(undisturbed)
    assert {name: before[name] for name in before if name != ".lock"} == {
        name: after[name] for name in after if name != ".lock"
    }


def test_checkpoints_hold_no_folder_that_loaders_mistake_for_a_model(undisturbed):
    folders = [path for path in (undisturbed / "checkpoints").rglob("*") if path.is_dir()]
    assert len(folders) > 2
    assert not {"adapter", "merged"} & {folder.name for folder in folders}
    assert sorted(path.name for path in (undisturbed / "checkpoints").iterdir()) == ["6", "9"]


def test_the_adapter_is_that_of_the_best_step(undisturbed):
    lines = {line["step"]: line for line in _learned(undisturbed) if "validation/loss" in line}
    values = {step: line["validation/accuracy"] for step, line in lines.items()}
    assert list(values) == [4, 8, 9]
    best = tiny.report(undisturbed)["best"]
    assert best["step"] == max(values, key=lambda step: (values[step], -lines[step]["validation/loss"], -step))
    assert best["value"] == tiny.report(undisturbed)["metrics"]["validation"]["accuracy"]
