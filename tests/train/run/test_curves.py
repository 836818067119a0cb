import json
import struct

import numpy as np
import pytest

from train.run.curves import draw_metrics, plot_metrics, smooth


def _lines(metric="accuracy", values=(0.6, 0.9, 0.9, 0.7)):
    lines = [{"step": step, "train/loss": 1 / step, "train/learning_rate": 1e-3 / step} for step in range(1, 41)]
    lines[4]["train/loss"] = None
    evaluations = [
        {"step": 10 * (index + 1), "validation/loss": 0.5, f"validation/{metric}": value}
        for index, value in enumerate(values)
    ]
    return lines + evaluations


def _panels(figure):
    return {axes.get_ylabel(): axes for axes in figure.axes}


def test_the_same_file_gives_the_same_picture(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in _lines()) + '{"step": 41, "train/lo')
    for name in ("a.png", "b.png"):
        plot_metrics(path, tmp_path / name, "accuracy", "a run", 100)
    picture = (tmp_path / "a.png").read_bytes()
    assert picture == (tmp_path / "b.png").read_bytes()
    assert struct.unpack(">II", picture[16:24]) == (1650, 750)


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [("accuracy", (0.6, 0.9, 0.9, 0.7), (20, 0.9)), ("mse", (0.6, 0.9, 0.2, 0.7), (30, 0.2))],
)
def test_the_marked_step_is_the_one_the_trainer_keeps(metric, values, best):
    panel = next(
        axes
        for label, axes in _panels(draw_metrics(_lines(metric, values), metric, "", 100)).items()
        if "validation" in label
    )
    curve, mark = panel.get_lines()
    assert curve.get_xydata().tolist() == [[10 * (i + 1), v] for i, v in enumerate(values)]
    assert mark.get_xydata().tolist() == [list(best)]


def test_loss_and_learning_rate_are_drawn_where_they_are_finite():
    panels = _panels(draw_metrics(_lines(), "accuracy", "", 100))
    raw, mean, validation = panels["loss"].get_lines()
    assert len(raw.get_xdata()) == len(mean.get_xdata()) == 39
    assert 5 not in raw.get_xdata()
    assert validation.get_xydata().tolist() == [[step, 0.5] for step in (10, 20, 30, 40)]
    assert panels["learning rate"].get_lines()[0].get_ydata()[0] == 1e-3


@pytest.mark.parametrize("lines", [[], [{"step": 1, "train/loss": 0.5, "train/learning_rate": 1e-3}]])
def test_a_run_that_was_never_evaluated_has_a_picture_that_says_so(lines, tmp_path):
    figure = draw_metrics(lines, "accuracy", "", 100)
    figure.savefig(tmp_path / "curves.png")
    assert "not evaluated" in [text.get_text() for axes in figure.axes for text in axes.texts]


def _metric_panel(lines, rows, metric="accuracy"):
    return next(axes for label, axes in _panels(draw_metrics(lines, metric, "", rows)).items() if "validation" in label)


@pytest.mark.parametrize(
    ("metric", "rows", "least"), [("accuracy", 100, 0.2), ("accuracy", 10_000, 0.02), ("mse", 9, 1.0)]
)
def test_the_axis_is_no_narrower_than_the_noise_of_so_many_rows(metric, rows, least):
    close, far = ((0.519, 0.527), (0.1, 0.9)) if metric == "accuracy" else ((20.0, 20.001), (1.0, 20.0))
    low, high = _metric_panel(_lines(metric, close), rows, metric).get_ylim()
    assert high - low == pytest.approx(least)
    assert low < min(close) < max(close) < high
    low, high = _metric_panel(_lines(metric, far), rows, metric).get_ylim()
    assert high - low < 1.3 * (max(far) - min(far))


@pytest.mark.parametrize("losses", [(0.694, 0.693, 0.692), (5.0, 2.0, 0.5), (0.7,)])
def test_the_axis_of_the_loss_has_a_margin_and_makes_no_fall_of_noise(losses):
    lines = [{"step": step, "train/loss": loss} for step, loss in enumerate(losses, 1)]
    low, high = _panels(draw_metrics(lines, "accuracy", "", 100))["loss"].get_ylim()
    assert high - low >= 0.25 * losses[-1]
    assert max(losses) + 0.09 * (high - low) < high
    assert min(losses) - 0.09 * (high - low) > low


def test_the_values_before_training_are_at_step_0():
    lines = [{"step": 10, "start/accuracy": 0.4, "start/loss": 0.7}, *_lines()]
    panels = _panels(draw_metrics(lines, "accuracy", "", 100))
    assert _metric_panel(lines, 100).get_lines()[-1].get_xydata().tolist() == [[0, 0.4], [10, 0.6]]
    assert panels["loss"].get_lines()[-1].get_xydata().tolist() == [[0, 0.7], [10, 0.5]]
    named = [text.get_text() for text in panels["loss"].get_legend().get_texts()]
    assert named == ["train", "validation", "before training"]


def test_of_equal_values_the_one_of_the_lower_loss_is_marked():
    lines = _lines()
    next(line for line in lines if line["step"] == 30 and "validation/loss" in line)["validation/loss"] = 0.4
    _, mark, *_ = _metric_panel(lines, 100).get_lines()
    assert mark.get_xydata().tolist() == [[30, 0.9]]


def test_smoothing_is_the_mean_of_what_came_before():
    values = np.random.default_rng(0).normal(size=20)
    expected = [values[max(0, i - 4) : i + 1].mean() for i in range(20)]
    np.testing.assert_allclose(smooth(values, 5), expected)
    np.testing.assert_allclose(smooth(values, 1), values)
