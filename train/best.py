"""The best evaluation of a run, and what makes one better than another."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

_LOWER_IS_BETTER = {"loss", "perplexity", "mse", "mae"}


@dataclasses.dataclass(frozen=True)
class Best:
    """The best evaluation so far.

    Attributes:
      trainable: the trained leaves as `kept` has them.
      value: the metric that chooses; None before the first evaluation.
      step: when it was. stale: how many evaluations since then were no better.
      metrics: all numbers of the evaluation; empty before the first, and in checkpoints of earlier versions.
    """

    trainable: Any
    value: float | None = None
    step: int = 0
    stale: int = 0
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


def is_better(metric: str, new: float, old: float | None) -> bool:
    """Whether `new` beats `old`: strictly, so that of two equal steps the earlier one stays the best.

    Any number beats None and NaN; NaN beats nothing. `loss`, `mse` and `mae` are better when lower.
    """
    if math.isnan(new):
        return False
    if old is None or math.isnan(old):
        return True
    return new < old if metric in _LOWER_IS_BETTER else new > old
