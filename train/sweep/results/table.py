"""Writes the results of a sweep as table.md and table.csv, the best run first."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.sweep.results.compare_runs import Result


def write_tables(folder: Path, ranked: Sequence[Result]) -> None:
    """Writes table.md, for people, and table.csv, with all digits.

    `ranked` are the results in the order of the rows, the best first.
    """
    metric = ranked[0].metric or "metric"
    head = [*ranked[0].point.values, metric, "loss", "best step", "trained parameters", "ended", "run"]
    rows = [[*one.point.values.values(), *_numbers(one), one.ended, one.point.name] for one in ranked]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    (folder / "table.csv").write_text(text.getvalue(), encoding="utf-8")
    lines = [head, ["---"] * len(head), *rows]
    text_md = "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)
    (folder / "table.md").write_text(text_md + "\n", encoding="utf-8")


def _numbers(one: Result) -> list[Any]:
    return [one.value, one.loss, one.step, one.parameters]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 0.01 else f"{value:.4f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", "\\|")
