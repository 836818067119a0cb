"""The best evaluation of a run, and how evaluations are compared."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

LOWER_IS_BETTER = {"loss", "perplexity", "mse", "mae"}


@dataclasses.dataclass(frozen=True)
class Best:
    """The best evaluation so far.

    Attributes:
      trainable: the trained leaves, copied to the host; before the first evaluation the initial ones.
      value: the metric that chooses the best step; None before the first evaluation.
      step: the step of the evaluation.
      stale: how many evaluations in a row did not improve the metric.
      metrics: all numbers of the evaluation; empty before the first, and in checkpoints of earlier versions.
    """

    trainable: Any
    value: float | None = None
    step: int = 0
    stale: int = 0
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


def is_better(
    metric: str, new: float, old: float | None, new_loss: float = math.nan, old_loss: float | None = None
) -> bool:
    """Returns whether the value `new` of a metric is better than `old`; if they are equal, the lower loss wins.

    `loss`, `perplexity`, `mse` and `mae` are better when lower, others when higher. If the losses are equal too or
    `old_loss` is None, the result is False: the earlier one remains the best. Any number beats None (no evaluation yet)
    and NaN; NaN beats nothing.
    """
    if math.isnan(new):
        return False
    if old is None or math.isnan(old):
        return True
    if new == old:
        return old_loss is not None and new_loss < old_loss
    return new < old if metric in LOWER_IS_BETTER else new > old


def judge(before: Best, metric: str, found: Mapping[str, float], step: int, trainable: Callable[[], Any]) -> Best:
    """Returns the best evaluation after one more.

    Args:
      metric: the metric that chooses the best step.
      found: {metric: value} of the new evaluation, with `loss`.
      step: the step of the new evaluation.
      trainable: returns a copy of the evaluated leaves in the host's memory; called only if they are the best.
    """
    value = found[metric]
    stale = 0 if is_better(metric, value, before.value) else before.stale + 1
    if is_better(metric, value, before.value, found["loss"], before.metrics.get("loss")):
        return Best(trainable(), value, step, stale, found)
    return dataclasses.replace(before, stale=stale)
