"""Times of calls that take turns, so that whatever else the machine does hits all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def take_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[tuple[float, Any]]]:
    """{name: (seconds, result) of its call in each round}. A round calls each once, another one first each time."""
    names = list(calls)
    found: dict[str, list[tuple[float, Any]]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            found[name].append(timed(calls[name]))
    return found


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, result) of a call."""
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


def spread(values: Sequence[float]) -> dict[str, float]:
    """The least value and the quartiles."""
    names = ("min", "q1", "median", "q3")
    return {name: float(value) for name, value in zip(names, np.quantile(values, [0, 0.25, 0.5, 0.75]), strict=True)}


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """The spread of the quotients within each round: what slows a whole round down cancels out."""
    return spread(np.divide(above, below).tolist())
