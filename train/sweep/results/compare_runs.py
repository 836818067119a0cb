"""Compares the runs of a sweep: at a step, from their records, and at the end, from their reports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jlora.files.bounded_json import read_json
from train.config.run_config import RunConfig
from train.run import manifest
from train.run.best import LOWER_IS_BETTER
from train.run.recorder import read_metrics
from train.sweep.points import Point


class Result(NamedTuple):
    """The result of one run: its best evaluation, and how it ended.

    Attributes:
      point: without the keys of `lora` if the run's method is not LoRA.
      metric: the name of the metric that chooses the best step; "" if the run has diverged.
      value: the metric at its best step; None if it has diverged.
      loss: the validation loss at that step; None if it has diverged.
      step: the best step; None if it has diverged.
      parameters: how many were trained; None if it has diverged.
    """

    point: Point
    metric: str
    value: float | None
    loss: float | None
    step: int | None
    parameters: int | None
    ended: str


def are_comparable(configs: Sequence[RunConfig], results: Sequence[Result]) -> bool:
    """Returns whether finished runs have one metric and, by their manifests, the same validation tokens."""
    described = [read_json(Path(config.output_dir) / manifest.NAME)["data"] for config in configs]
    return have_same_validation(described) and len({one.metric for one in results if one.metric}) <= 1


def have_same_validation(described: Sequence[Mapping[str, str]]) -> bool:
    """Returns whether runs have the same validation rows, as the model sees them: tokens and labels.

    Args:
      described: the result of `train.run.manifest.describe_data` for each run.
    """
    held_out = [{name: text for name, text in data.items() if name.startswith("validation/")} for data in described]
    return all(one == held_out[0] for one in held_out)


def compare_at(configs: Sequence[RunConfig], step: int, metric: str) -> list[int]:
    """Returns the places of the runs, the best first, by the evaluation of a step; without one they come last."""
    values = []
    for config in configs:
        lines = read_metrics(Path(config.output_dir) / "metrics.jsonl")
        found = [line for line in lines if line["step"] == step and line.get(f"validation/{metric}") is not None]
        at = found[-1] if found else {}
        values.append(_key(metric, at.get(f"validation/{metric}"), at.get("validation/loss")))
    return sorted(range(len(configs)), key=values.__getitem__)


def read_results(points: Sequence[Point], configs: Sequence[RunConfig]) -> list[Result]:
    """Reads the reports of finished runs."""
    return [
        _result(_only_read(point, config), read_json(Path(config.output_dir) / "report.json"))
        for point, config in zip(points, configs, strict=True)
    ]


def _only_read(point: Point, config: RunConfig) -> Point:
    if config.method == "lora":
        return point
    return point._replace(values={key: x for key, x in point.values.items() if not key.startswith("lora.")})


def sort_results(results: Sequence[Result]) -> list[Result]:
    """Sorts the results, the best first; of equal metrics the one with the lower loss is better."""
    return sorted(results, key=lambda one: _key(one.metric, one.value, one.loss))


def _result(point: Point, report: dict[str, Any]) -> Result:
    best, ended = report["best"], report["sweep"]["ended"]
    if best is None or best["value"] is None:
        return Result(point, "", None, None, None, None, ended)
    loss = report["metrics"]["validation"].get("loss")
    trained = report["parameters"]["trainable"]
    return Result(point, best["metric"], best["value"], loss, best["step"], trained, ended)


def _key(metric: str, value: float | None, loss: float | None) -> tuple[float, float]:
    if value is None or not math.isfinite(value):
        return math.inf, math.inf
    return (value if metric in LOWER_IS_BETTER else -value), (math.inf if loss is None else loss)
