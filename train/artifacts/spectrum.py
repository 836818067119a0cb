"""Reports how much of each module's change a rank keeps: `spectrum.csv` and `spectrum.png`."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jlora.algebra.reduce_rank import rank_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHARES = (0.5, 0.9, 0.99)
_MODULE, _MEDIAN, _KEPT = "tab:blue", "tab:blue", "tab:orange"


@dataclass(frozen=True)
class Spectrum:
    """The spectrum of one module's change.

    Attributes:
      module: its dotted name.
      values: (k,) float32, the singular values of its change, the largest first.
      rank: how many of them were kept.
    """

    module: str
    values: np.ndarray
    rank: int

    @property
    def squares(self) -> np.ndarray:
        """(k,) float64, the squared singular values."""
        return np.square(self.values, dtype=np.float64)

    def share(self, ranks: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns the share of the squared change that each of these ranks keeps; 1 if nothing changed."""
        kept = np.concatenate([[0.0], np.cumsum(self.squares)])
        return kept[np.minimum(ranks, len(self.values))] / kept[-1] if kept[-1] else np.ones(len(ranks))

    @property
    def share_kept(self) -> float:
        """The share of the squared change that `rank` keeps."""
        return float(self.share([self.rank])[0])

    def ranks_needed(self) -> list[int]:
        """Returns the ranks that keep the SHARES of the squared change."""
        return [rank_for(self.values, share) for share in SHARES]


def write_csv(path: Path, spectra: Sequence[Spectrum]) -> None:
    """Writes one line per module: its rank in full and as kept, what it keeps, and the ranks that keep 50, 90 and 99 %.

    The columns are module, full_rank (the number of singular values), rank, energy_kept (the share of the squared
    change that `rank` keeps, six decimals), rank_for_50_percent, rank_for_90_percent and rank_for_99_percent.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        needed = [f"rank_for_{100 * share:.0f}_percent" for share in SHARES]
        writer.writerow(["module", "full_rank", "rank", "energy_kept", *needed])
        for spectrum in spectra:
            row = [spectrum.module, len(spectrum.values), spectrum.rank, f"{spectrum.share_kept:.6f}"]
            writer.writerow([*row, *spectrum.ranks_needed()])


def plot_spectrum(spectra: Sequence[Spectrum], out_png: str | Path, title: str) -> None:
    """Draws the share of the squared change over the rank as a PNG of 1350 x 825 pixels.

    Each module is a faint line, the median a bold one, and kept ranks are marked. The same input gives the same bytes.

    Args:
      spectra: one of each module, at least one.
    """
    draw_spectrum(spectra, title).savefig(out_png, dpi=150, metadata={"Software": None})


def draw_spectrum(spectra: Sequence[Spectrum], title: str) -> Figure:
    """Draws the figure that `plot_spectrum` saves, and returns it; `spectra` has at least one."""
    from matplotlib.figure import Figure  # half a second

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    panel: Axes = figure.subplots()
    ranks = np.arange(1, max(len(spectrum.values) for spectrum in spectra) + 1)
    for spectrum in spectra:
        own = ranks[: len(spectrum.values)]
        panel.plot(own, spectrum.share(own), color=_MODULE, alpha=max(0.2, 1 / len(spectra)), linewidth=0.9)
    median = np.median([spectrum.share(ranks) for spectrum in spectra], axis=0)
    panel.plot(ranks, median, color=_MEDIAN, linewidth=2.5, label=f"median of {len(spectra)} modules")
    _mark_kept(panel, spectra)
    _dress(panel, len(ranks), title)
    return figure


def _mark_kept(panel: Axes, spectra: Sequence[Spectrum]) -> None:
    kept = [spectrum.rank for spectrum in spectra]
    low, high = min(kept), max(kept)
    ranks = f"rank {low}" if low == high else f"ranks {low} to {high}"
    label = f"kept: {ranks}, {100 * total_kept(spectra):.1f} % of the whole"
    shares = [spectrum.share_kept for spectrum in spectra]
    panel.scatter(kept, shares, s=18, color=_KEPT, alpha=0.8, linewidths=0, zorder=3, label=label)
    if low == high:
        panel.axvline(low, color=_KEPT, linewidth=1, linestyle="--")


def _dress(panel: Axes, full: int, title: str) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

    panel.set_title(title, wrap=True)
    panel.set_xscale("log", base=2)
    panel.set_xlim(0.95, 1.05 * max(2, full))
    panel.set_ylim(0, 1.02)
    panel.set_xlabel("rank")
    panel.set_ylabel("share of the squared change")
    panel.set_yticks([0, 0.25, 0.5, 0.75, 0.9, 1])
    panel.xaxis.set_major_formatter(FuncFormatter(lambda rank, _: f"{rank:g}"))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, loc="lower right")


def total_kept(spectra: Sequence[Spectrum]) -> float:
    """Returns the share of all modules' squared change that their ranks keep; 1 if nothing changed.

    It is the sum of the squares of each module's first `rank` values, by the sum of all squares.
    """
    kept = sum(float(spectrum.squares[: spectrum.rank].sum()) for spectrum in spectra)
    total = sum(float(spectrum.squares.sum()) for spectrum in spectra)
    return kept / total if total else 1.0


def by_module(spectra: Mapping[str, np.ndarray], ranks: Sequence[int]) -> list[Spectrum]:
    """Combines the spectra that `jlora.extract` returns with the ranks of its adapter, in the same order.

    `spectra` is {module's name: singular values}; `ranks` has one for each. The result has one Spectrum for each.
    """
    return [Spectrum(name, values, rank) for (name, values), rank in zip(spectra.items(), ranks, strict=True)]
