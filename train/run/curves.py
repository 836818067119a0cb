"""Draws `curves.png`: loss, metric and learning rate of a run over its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from train.run.best import LOWER_IS_BETTER, is_better
from train.run.recorder import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEAST_LOSS_AXIS = 0.25
"""Height of the loss axis as a part of the last loss: what changes by a hundredth is to look nearly flat."""
_TRAIN, _VALIDATION = "tab:blue", "tab:orange"
_LABELS = {"f1": "F1", "f1_micro": "F1 (micro)", "f1_macro": "F1 (macro)", "mcc": "Matthews correlation"}
_LABELS |= {"pearson": "Pearson correlation", "spearman": "Spearman correlation", "mse": "mean squared error"}
_LABELS |= {"mae": "mean absolute error"}


def plot_metrics(metrics_jsonl: str | Path, out_png: str | Path, metric: str, title: str, rows: int) -> None:
    """Draws a run's `metrics.jsonl` as a PNG of 1650 x 750 pixels.

    Left: the training loss (as recorded, faint, and smoothed) and the validation loss. Top right: `validation/{metric}`
    with its best step marked, or a note that there is none. Bottom right: the learning rate. Values before training are
    at step 0. The same input gives the same bytes.

    Args:
      metric: the metric's name, without `validation/`.
      title: the figure's heading.
      rows: the number of validation rows. With few rows a metric is noisy, and its axis is at least as wide as the
        noise.

    Raises:
      FileError: the metrics are missing or damaged.
    """
    draw_metrics(read_metrics(metrics_jsonl), metric, title, rows).savefig(
        out_png, dpi=150, metadata={"Software": None}
    )


def draw_metrics(lines: list[dict[str, Any]], metric: str, title: str, rows: int) -> Figure:
    """Draws the figure from the lines that `read_metrics` returns: loss, a validation metric, and learning rate.

    Args:
      lines: {"step", "train/loss", "validation/loss", ...} each; missing names and None are not drawn.
      metric: the metric's name, without `validation/`.
      title: the figure's heading.
      rows: the number of validation rows, for the `noise` of the metric.
    """
    from matplotlib.figure import Figure  # takes half a second, and only the end of a run needs it

    figure = Figure(figsize=(11, 5), layout="constrained")
    places = [["loss", "metric"], ["loss", "rate"]]
    panels: dict[str, Axes] = figure.subplot_mosaic(places, height_ratios=[2.2, 1], width_ratios=[1.25, 1])
    figure.suptitle(title)
    _loss(panels["loss"], lines)
    _metric(panels["metric"], lines, metric, rows)
    _learning_rate(panels["rate"], lines)
    last_step = max((line["step"] for line in lines), default=1)
    for panel in panels.values():
        _dress(panel, last_step)
    panels["metric"].sharex(panels["rate"])
    panels["metric"].tick_params(labelbottom=False)
    panels["metric"].set_xlabel("")
    return figure


def smooth(values: Sequence[float], window: int) -> np.ndarray:
    """Returns (n,): at each place the mean of the last `window` values, or of fewer at the beginning.

    smooth([1, 2, 3, 5], 2) -> [1, 1.5, 2.5, 4]
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - window, 0)
    return (sums[ends] - sums[begins]) / (ends - begins)


def _loss(panel: Axes, lines: list[dict[str, Any]]) -> None:
    steps, losses = _series(lines, "train/loss")
    marker = "o" if len(losses) < 10 else None
    panel.plot(steps, losses, color=_TRAIN, alpha=0.3, linewidth=0.8, marker=marker)
    window = max(1, len(losses) // 20)
    label = "train" if window == 1 else f"train (mean of {window} records)"
    panel.plot(steps, smooth(losses, window), color=_TRAIN, label=label)
    evaluated = _series(lines, "validation/loss")
    if evaluated[0]:
        panel.plot(*evaluated, color=_VALIDATION, marker="o", label="validation")
        _before(panel, lines, "loss", evaluated)
    panel.set_ylabel("loss")
    _widen(panel, max((_LEAST_LOSS_AXIS * abs(values[-1]) for values in (losses, evaluated[1]) if values), default=0))
    panel.legend(frameon=False, loc="upper right")  # "best" warns where a busy machine takes long to find it


def _metric(panel: Axes, lines: list[dict[str, Any]], metric: str, rows: int) -> None:
    steps, values = _series(lines, f"validation/{metric}")
    panel.plot(steps, values, color=_VALIDATION, marker="o")
    panel.set_ylabel(f"validation {_LABELS.get(metric, metric)}")
    if not values:
        panel.text(0.5, 0.5, "not evaluated", ha="center", va="center", transform=panel.transAxes)
        panel.set_yticks([])
        return
    losses = dict(zip(*_series(lines, "validation/loss"), strict=True))
    best = 0
    for index, value in enumerate(values):
        if is_better(metric, value, values[best], losses.get(steps[index], math.nan), losses.get(steps[best])):
            best = index
    panel.plot(steps[best], values[best], color=_VALIDATION, marker="o", markersize=12, fillstyle="none")
    panel.set_title(f"best {values[best]:.4f} at step {steps[best]:,}", fontsize="medium")
    _before(panel, lines, metric, (steps, values))
    _widen(panel, noise(metric, values[best], rows))


def _widen(panel: Axes, least: float) -> None:
    """Leaves a tenth of the axis free above and below the curves, and makes it no narrower than `least`."""
    panel.margins(y=0.125)
    low, high = panel.get_ylim()
    if high - low < least:
        panel.set_ylim((low + high - least) / 2, (low + high + least) / 2)


def noise(metric: str, value: float, rows: int) -> float:
    """Returns the smallest significant difference of a metric on `rows` rows.

    For a share it is 2 / sqrt(rows), whatever the value: four standard errors of a share of one half. For `loss`,
    `perplexity`, `mse` and `mae`, which vary less on the same rows, it is a twentieth of the value.
    """
    return 0.05 * abs(value) if metric in LOWER_IS_BETTER else 2 / math.sqrt(max(rows, 1))


def _before(panel: Axes, lines: list[dict[str, Any]], name: str, evaluated: tuple[list[int], list[float]]) -> None:
    """Draws a dotted line from the value before training to the first evaluation."""
    _, values = _series(lines, f"start/{name}")
    if values:
        (first, *_), (value, *_) = evaluated
        (line,) = panel.plot([0, first], [values[0], value], color="tab:gray", linestyle=":", marker="o", zorder=0)
        line.set_label("before training")


def _learning_rate(panel: Axes, lines: list[dict[str, Any]]) -> None:
    from matplotlib.ticker import ScalarFormatter

    steps, rates = _series(lines, "train/learning_rate")
    panel.plot(steps, rates, color="tab:gray", marker="o" if len(rates) < 10 else None)
    panel.set_ylabel("learning rate")
    panel.set_ylim(bottom=0)
    formatter = ScalarFormatter(useMathText=True)
    formatter.set_powerlimits((-2, 2))
    panel.yaxis.set_major_formatter(formatter)


def _series(lines: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Returns the steps and finite values of one name."""
    pairs = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _dress(panel: Axes, last_step: int) -> None:
    from matplotlib.ticker import MaxNLocator

    panel.set_xlim(0, 1.03 * last_step)
    panel.set_xlabel("step (optimizer updates)")
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
