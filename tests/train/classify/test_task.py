import csv
import json

import numpy as np
import pytest
import yaml

from tests.support.training import tiny
from train.artifacts import merge_for_export
from train.classify import __main__ as classify
from train.classify.data.labels import Labels
from train.classify.predictions import format_prediction
from train.loop import loop
from train.run import environment
from train.run.best import Best


def _predictions(run):
    with (run / "predictions.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_predictions_show_text_label_and_probabilities():
    rows = _predictions(tiny.finished_run())
    assert len(rows) == 10
    for row, (text, label) in zip(rows, tiny.texts(10, 1), strict=True):
        assert (row["text"], row["label"]) == (text, str(label))
        shares = [float(row["LABEL_0"]), float(row["LABEL_1"])]
        assert sum(shares) == pytest.approx(1, abs=1e-3)
        assert row["predicted"] == f"LABEL_{int(np.argmax(shares))}"


@pytest.mark.parametrize(
    ("problem_type", "values", "expected"),
    [
        ("single_label_classification", [0.2, 0.5, 0.3], "b"),
        ("multi_label_classification", [0.6, 0.5, 0.51], "a;c"),
        ("multi_label_classification", [0.1, 0.2, 0.3], ""),
        ("regression", [2.71828], "2.7183"),
    ],
)
def test_what_a_row_is_predicted_to_be(problem_type, values, expected):
    names = ("LABEL_0",) if problem_type == "regression" else ("a", "b", "c")
    assert format_prediction(Labels(problem_type, names), np.array(values)) == expected


def test_the_report_says_what_was_used_and_what_came_out():
    run = tiny.finished_run()
    found = tiny.report(run)
    assert found["sources"] == {
        "model": str(tiny.model_folder()),
        "data": str(tiny.data_file(24)),
        "offline": False,
    }
    assert found["rows"] == {"train": 24, "validation": 10}
    assert found["parameters"]["total"] == 18_880 + found["parameters"]["trainable"]
    assert found["times"]["train"] > 0
    assert 0 <= found["merged_largest_logit_difference"] < 1e-4


def _evaluated(run):
    """The numbers of the best step, as they were recorded while the run trained."""
    step = tiny.report(run)["best"]["step"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (best,) = (line for line in lines if line["step"] == step and "validation/loss" in line)
    return {name.removeprefix("validation/"): value for name, value in best.items() if name.startswith("validation/")}


def test_the_best_step_is_reported_as_it_was_evaluated():
    run = tiny.finished_run()
    assert tiny.report(run)["metrics"]["validation"] == _evaluated(run)


def test_a_best_step_without_its_numbers_is_evaluated_again(tmp_path, monkeypatch):
    """A run that goes on from a checkpoint of an earlier version may have one."""
    monkeypatch.setattr(
        loop, "Best", lambda trainable, value, step, stale, metrics: Best(trainable, value, step, stale)
    )
    run = tiny.train(tmp_path / "run")
    assert tiny.report(run)["metrics"]["validation"] == pytest.approx(_evaluated(run))


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_the_card_says_how_it_was_made_and_where_it_is(kind):
    folder = tiny.finished_run() / kind
    card = (folder / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["pipeline_tag"] == "text-classification"
    assert "base_model" not in metadata  # a folder is no hub name
    assert repr(str(folder)) in card
    assert f"`{tiny.model_folder().name}`" in card
    assert (str(tiny.model_folder()) in card) == (kind == "adapter")  # whose code would not run without it
    assert environment.command() in card


def test_rounded_weights_are_measured_but_no_error(tmp_path):
    run = tiny.train(tmp_path / "run", "export.dtype=bfloat16")
    assert str(tiny.tensors(run / "merged")["classifier.weight"].dtype) == "bfloat16"
    assert tiny.report(run)["merged_largest_logit_difference"] > 1e-5


def test_merged_files_that_are_wrong_end_the_run_without_a_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(merge_for_export, "largest_difference", lambda one, other: 0.5)
    assert tiny.call(classify.main, tiny.arguments(tmp_path / "run")) == 2
    assert "differ by 0.5" in capsys.readouterr().err
    assert not (tmp_path / "run/report.json").exists()
