"""Writes the tables of docs/which-settings.md from the results of its sweeps."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.common.marked_parts import table

Line = dict[str, str]
RATE, RANK, ALPHA, MODULES = "train.learning_rate", "lora.r", "lora.lora_alpha", "lora.target_modules"


def write_parts(results: dict[str, Any]) -> dict[str, str]:
    """Returns {name of a part of the page: its table}; `results` is the content of the page's .json."""
    sweeps = results["sweeps"]
    return {
        "rank and rate": _pivot(sweeps["rank_lr"], RANK, RATE),
        "alpha and rate": _pivot(sweeps["rank_lr"], ALPHA, RATE),
        "modules": modules_table(sweeps["modules"]),
        "methods": methods_table(sweeps["methods"]),
    }


def _pivot(lines: Sequence[Line], down: str, across: str) -> str:
    """Returns the best accuracy of each pair of values, in percent; the best of all is bold."""
    rows, columns = (sorted({line[key] for line in lines}, key=float) for key in (down, across))
    best = max(_accuracy(line) for line in lines)

    def cell(row: str, column: str) -> str:
        found = max(_accuracy(line) for line in lines if (line[down], line[across]) == (row, column))
        return f"**{found:.1f}**" if found == best else f"{found:.1f}"

    head = [f"`{down}` \\ `{across}`", *(f"{float(column):g}" for column in columns)]
    return table(head, [[row, *(cell(row, column) for column in columns)] for row in rows])


def modules_table(lines: Sequence[Line]) -> str:
    """Returns a row for each choice of modules, the smallest first: its parameters, and its accuracy at each rate."""
    rates = sorted({line[RATE] for line in lines}, key=float)
    rows = []
    for modules in sorted({line[MODULES] for line in lines}, key=lambda one: _size(_of(lines, MODULES, one))):
        mine = _of(lines, MODULES, modules)
        cells = [f"{_accuracy(next(line for line in mine if line[RATE] == rate)):.1f}" for rate in rates]
        shown = modules.replace("|", "\\|")  # which would begin another cell
        rows.append([f"`{shown}`", f"{_size(mine):,}", *cells])
    return table(["modules", "trained parameters", *(f"accuracy at {float(rate):g}" for rate in rates)], rows)


def methods_table(lines: Sequence[Line]) -> str:
    """Returns a row for the head, each rank, and full fine-tuning: means over the seeds, and the share of the gain.

    The gain is that of full fine-tuning over a head alone.
    """
    kinds: dict[str, list[Line]] = {}
    for line in lines:
        kinds.setdefault(line["run"].rpartition("-")[0], []).append(line)
    means = {kind: statistics.mean(map(_accuracy, mine)) for kind, mine in kinds.items()}
    gain = means["full"] - means["head"]
    rows = []
    for kind in sorted(kinds, key=lambda one: _size(kinds[one])):
        found = [_accuracy(line) for line in kinds[kind]]
        share = "" if kind in ("full", "head") else f"{100 * (means[kind] - means['head']) / gain:.0f} %"
        span = f"{min(found):.1f} to {max(found):.1f}"
        rows.append([_name(kind), f"{_size(kinds[kind]):,}", f"{means[kind]:.1f}", span, share])
    return table(["method", "trained parameters", "accuracy, mean", "of the seeds", "share of the gain"], rows)


def _name(kind: str) -> str:
    names: dict[str, str] = {"head": "head alone", "full": "full fine-tuning"}
    return names.get(kind, f"LoRA, rank {kind.removeprefix('r')}")


def _of(lines: Sequence[Line], key: str, value: str) -> list[Line]:
    return [line for line in lines if line[key] == value]


def _accuracy(line: Line) -> float:
    return 100 * float(line["accuracy"])


def _size(lines: Sequence[Line]) -> int:
    return int(lines[0]["trained parameters"])
