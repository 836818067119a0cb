"""A split run through batch by batch, for its evaluation."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from train.data.bucketing import PlannedBatch


def never() -> None:
    """The check of an evaluation that nothing ends early."""


def results(
    step: Callable[[PlannedBatch], Any], plan: Sequence[PlannedBatch], check: Callable[[], None]
) -> Iterator[Any]:
    """step(batch) of each batch of the plan, as numpy arrays; one is computed while the next is made.

    Args:
      step: gives a tree of arrays, of several processes whole in each.
      check: called before each batch; what it raises ends the evaluation.
    """
    running = deque[Any]()
    for planned in plan:
        check()
        running.append(step(planned))
        if len(running) > 1:
            yield jax.device_get(running.popleft())
    yield from map(jax.device_get, running)
