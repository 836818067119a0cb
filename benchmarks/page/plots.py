"""The plots of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.growth import exponent
from benchmarks.page.cells import median, quotients

matplotlib.use("Agg")
_OURS, _THEIRS = "#1f5fa8", "#c4641d"
_COLOURS = {"lora": _OURS, "peft": _THEIRS}
_LABELS = {"lora": "jlora", "peft": "PEFT"}


def draw(results: dict[str, Any], folder: Path) -> list[str]:
    """Writes the plots whose figures there are into `folder`; their names without .png."""
    found = {name: piece["result"] for name, piece in results["pieces"].items() if "result" in piece}
    drawn = {"steps": _steps(found), "growth": _growth(found)}
    for name, figure in drawn.items():
        if figure is not None:
            figure.savefig(folder / f"{name}.png", dpi=90, metadata={"Software": None})
    return [name for name, figure in drawn.items() if figure is not None]


def _steps(found: dict[str, Any]) -> Figure | None:
    """A line from the least to the largest ratio to PEFT for each step, with its median."""
    rows = {
        name: quotients(result["sides"]["lora"]["seconds"], result["sides"]["peft"]["seconds"])
        for name, result in found.items()
        if name.startswith(("encoder", "lm")) and {"lora", "peft"} <= result["sides"].keys() and not result["apart"]
    }
    if not rows:
        return None
    figure = Figure(figsize=(7.5, 0.8 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, ratios in enumerate(rows.values()):
        axes.plot([min(ratios), max(ratios)], [place, place], color=_OURS, linewidth=2, alpha=0.4)
        axes.plot([median(ratios)], [place], "o", color=_OURS)
    axes.axvline(1, color="#888888", linewidth=1)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("time of jlora's step over PEFT's: left of 1 jlora is faster")
    _plain(axes)
    return figure


def _growth(found: dict[str, Any]) -> Figure | None:
    """Four panels, both axes logarithmic, with the fitted exponents."""
    panels = [name for name in ("temporaries", "tokens", "layers", "ranks") if f"growth-{name}" in found]
    if not panels:
        return None
    figure = Figure(figsize=(2.6 * len(panels), 2.7), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        result = found[f"growth-{name}"]
        if name == "temporaries":
            _line(axes, result["x"], [size / 1e9 for size in result["bytes"]], "lora")
            axes.set_title("temporaries, GB", fontsize=9)
            axes.set_xlabel("tokens")
        else:
            for side, figures in result["sides"].items():
                _line(axes, result["x"], list(map(median, figures["seconds"])), side)
            axes.set_title("seconds a step", fontsize=9)
            axes.set_xlabel(name.removesuffix("s") if name == "ranks" else name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(result["x"], [f"{x // 1024}k" if x >= 1024 else str(x) for x in result["x"]])
        axes.xaxis.set_minor_locator(NullLocator())
        _plain(axes)
    return figure


def _line(axes: Axes, xs: list[float], ys: list[float], side: str) -> None:
    label = f"{_LABELS[side]}, exponent {exponent(xs, ys):.2f}"
    axes.plot(xs, ys, "o-", color=_COLOURS[side], label=label, markersize=4)
    axes.legend(fontsize=7, frameon=False)


def _plain(axes: Axes) -> None:
    number: Callable[[float, int], str] = lambda value, _: f"{value:g}"  # noqa: E731
    axes.yaxis.set_major_formatter(FuncFormatter(number)) if axes.get_yscale() == "log" else None
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
