"""Draws sweep.png: the metric against the rate with a line for each rank, a heat map, and the metric against size."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from train.run.best import LOWER_IS_BETTER
from train.sweep.points import show_value
from train.sweep.results.compare_runs import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FIRST = ("train.learning_rate", "lora.r")
"""The keys that are shown first: the horizontal axis, and the lines."""


def draw_sweep(file: Path, results: Sequence[Result], title: str) -> None:
    """Draws the results of a sweep, in the order of its file, as a PNG; runs that have diverged are left out.

    The horizontal axis of the first panel is the learning rate, or else the first key with numbers; there is a line for
    each value of a second key. Where several runs share a place, the line and the heat map have the best of them. Runs
    that do not read one of these keys, as full fine-tuning reads no rank, are in the last panel alone.
    Nothing is drawn if no run has a result.
    """
    from matplotlib.figure import Figure

    done = [one for one in results if one.value is not None]
    if not done:
        return
    varied = _varied(done)
    with_keys = [one for one in done if all(key in one.point.values for key in varied[:2])]
    panels: list[Callable[[Axes], None]] = []
    if varied:
        panels.append(lambda panel: _lines(panel, with_keys, varied))
    if len(varied) > 1:
        panels.append(lambda panel: _heat_map(panel, with_keys, varied[0], varied[1]))
    if len({one.parameters for one in done}) > 1 or not panels:
        panels.append(lambda panel: _sizes(panel, done))
    figure = Figure(figsize=(5.5 * len(panels), 4.6), layout="constrained")
    figure.suptitle(title)
    for panel, draw in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        draw(panel)
    figure.savefig(file, dpi=150, metadata={"Software": None})


def _varied(done: Sequence[Result]) -> list[str]:
    """Returns the keys with several values: rate and rank first, numbers before others."""
    values: dict[str, list[Any]] = {}
    for key, value in (each for one in done for each in one.point.values.items()):
        values.setdefault(key, []).append(value)
    keys = [key for key, given in values.items() if len(set(map(str, given))) > 1]

    def order(key: str) -> tuple[int, bool]:
        return (_FIRST.index(key) if key in _FIRST else len(_FIRST)), not all(map(_is_number, values[key]))

    return sorted(keys, key=order)


def _lines(panel: Axes, done: Sequence[Result], varied: Sequence[str]) -> None:
    across, of_line = varied[0], varied[1] if len(varied) > 1 else None
    xs = _values(done, across)
    positions = _positions(panel, across, xs)
    lines = _values(done, of_line) if of_line else [None]
    for number, value in enumerate(lines):
        mine = [one for one in done if of_line is None or one.point.values[of_line] == value]
        shown = [(positions[str(one.point.values[across])], one.value or 0.0) for one in mine]
        color = f"C{number % 10}"
        panel.plot([x for x, _ in shown], [y for _, y in shown], "o", color=color, alpha=0.35, markersize=4)
        found = [(positions[str(x)], best) for x in xs if (best := _best(mine, {across: x})) is not None]
        label = None if of_line is None else textwrap.shorten(f"{_short(of_line)} {show_value(value)}", 40)
        style = "o-" if all(map(_is_number, xs)) else "o"  # no line leads from one list of modules to another
        panel.plot([x for x, _ in found], [y for _, y in found], style, color=color, label=label)
    panel.set_ylabel(f"validation {done[0].metric}")
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    if of_line:
        panel.legend(frameon=False)


def _positions(panel: Axes, key: str, values: Sequence[Any]) -> dict[str, float]:
    """Labels the horizontal axis; returns the place of each value: itself on a logarithmic axis, or its number."""
    panel.set_xlabel(key)
    if all(map(_is_number, values)) and min(values) > 0:
        panel.set_xscale("log")
        panel.set_xticks(list(values), [f"{value:g}" for value in values])
        panel.minorticks_off()
        return {str(value): float(value) for value in values}
    panel.set_xticks(range(len(values)), [_tick(value) for value in values], fontsize=8)
    return {str(value): float(place) for place, value in enumerate(values)}


def _heat_map(panel: Axes, done: Sequence[Result], across: str, down: str) -> None:
    xs, ys = _values(done, across), _values(done, down)
    cells = [[_best(done, {across: x, down: y}) for x in xs] for y in ys]
    shown = np.array([[np.nan if cell is None else cell for cell in row] for row in cells])
    colors = "viridis_r" if done[0].metric in LOWER_IS_BETTER else "viridis"
    image = panel.imshow(shown, aspect="auto", cmap=colors, origin="lower")
    panel.set_xticks(range(len(xs)), [_tick(x) for x in xs])
    panel.set_yticks(range(len(ys)), [_tick(y) for y in ys])
    panel.set_xlabel(across)
    panel.set_ylabel(down)
    for (row, column), value in np.ndenumerate(shown):
        if np.isfinite(value):
            tone = float(image.norm(value))  # type: ignore[arg-type]
            tone = tone if colors == "viridis" else 1 - tone
            panel.text(column, row, f"{value:.3f}", ha="center", va="center", color="black" if tone > 0.6 else "white")


def _sizes(panel: Axes, done: Sequence[Result]) -> None:
    sizes = sorted({one.parameters for one in done if one.parameters is not None})
    of_size = {size: [one.value for one in done if one.parameters == size and one.value is not None] for size in sizes}
    best = min if done[0].metric in LOWER_IS_BETTER else max
    for size, values in of_size.items():
        panel.plot([size] * len(values), values, "o", color="tab:gray", alpha=0.4, markersize=4)
    panel.plot(sizes, [best(of_size[size]) for size in sizes], color="tab:blue", marker="o", label="best of its size")
    panel.set_xscale("log")
    panel.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=20)
    panel.minorticks_off()
    panel.set_xlabel("trained parameters")
    panel.set_ylabel(f"validation {done[0].metric}")
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)


def _values(done: Sequence[Result], key: str) -> list[Any]:
    """Returns the different values of a key: in the order of the results, but numbers last and ascending."""
    found = {str(one.point.values[key]): one.point.values[key] for one in done}
    return sorted(found.values(), key=lambda value: value if _is_number(value) else -math.inf)


def _best(done: Sequence[Result], where: dict[str, Any]) -> float | None:
    values = [
        one.value
        for one in done
        if one.value is not None and all(one.point.values[key] == value for key, value in where.items())
    ]
    best = min if done and done[0].metric in LOWER_IS_BETTER else max
    return best(values) if values else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _tick(value: Any) -> str:
    """Returns a number short, each entry of a list on a line of its own, and a long text on several lines."""
    if _is_number(value):
        return f"{value:g}"
    entries = value if isinstance(value, list) else [show_value(value)]
    return "\n".join(textwrap.fill(str(entry), 16) for entry in entries)


def _short(key: str) -> str:
    return key.rpartition(".")[2]
