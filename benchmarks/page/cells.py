"""Figures as cells of Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table, with an empty one behind it."""
    return [_line(head), _line(["---"] * len(head)), *(_line(row) for row in rows), ""]


def three(values: Sequence[float], scale: float = 1.0) -> str:
    """`min / median / max`, three digits each."""
    return " / ".join(digits(scale * found) for found in (min(values), median(values), max(values)))


def digits(value: float) -> str:
    """A number with three digits, more where it has more before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 1 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio(above: Sequence[float], below: Sequence[float]) -> str:
    """`min / median / max` of the quotients of each round."""
    return " / ".join(f"{found(quotients(above, below)):.2f}" for found in (min, median, max))


def quotients(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Those of each round."""
    return np.divide(above, below).tolist()


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return float(np.median(values))


def gigabytes(count: float) -> str:
    """Bytes as GB, two digits behind the point."""
    return f"{count / 1e9:.2f}"


def seconds_of(side: dict[str, Any]) -> list[float]:
    """Of each round; none where the side failed."""
    return side.get("seconds", [])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
