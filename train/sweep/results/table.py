"""Writes the results of a sweep as table.md and table.csv."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from train.sweep.points import show_value
from train.sweep.results.compare_runs import Result


def write_tables(folder: Path, ranked: Sequence[Result]) -> None:
    """Writes table.md, for people, and table.csv, with all digits.

    A key that a run does not read has an empty cell, and so has a metric that does not choose its best step.

    Args:
      ranked: the results in the order of the rows: the best first, if they can be compared.
    """
    keys = dict.fromkeys(key for one in ranked for key in one.point.values)
    metrics = list(dict.fromkeys(one.metric for one in ranked if one.metric not in ("", "loss")))
    head = [*keys, *metrics, "loss", "best step", "trained parameters", "ended", "run"]
    rows = [[*_values(one, keys), *_numbers(one, metrics), one.ended, one.point.name] for one in ranked]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    (folder / "table.csv").write_text(text.getvalue(), encoding="utf-8")
    lines = [head, ["---"] * len(head), *rows]
    text_md = "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)
    (folder / "table.md").write_text(text_md + "\n", encoding="utf-8")


def _values(one: Result, keys: Iterable[str]) -> list[str]:
    return [show_value(one.point.values[key]) if key in one.point.values else "" for key in keys]


def _numbers(one: Result, metrics: Sequence[str]) -> list[Any]:
    of_metrics = [one.value if one.metric == metric else None for metric in metrics]
    return [*of_metrics, one.value if one.metric == "loss" else one.loss, one.step, one.parameters]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 0.01 else f"{value:.4f}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value).replace("|", "\\|")
