"""Evaluates a split batch by batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from train.data.bucketing import PlannedBatch, plan_evaluation
from train.devices import placement
from train.devices.compilation import jit


def never() -> None:
    """Does nothing: the `check` of an evaluation that is never stopped early."""


def results(
    step: Callable[[PlannedBatch], Any], plan: Sequence[PlannedBatch], check: Callable[[], None]
) -> Iterator[Any]:
    """Yields step(batch) for each batch of the plan, as numpy arrays; computes one while the next is made.

    Args:
      step: step(planned batch) returns a tree of arrays; with several processes each must have all of it.
      check: called before each batch; what it raises ends the evaluation.
    """
    running = deque[Any]()
    for planned in plan:
        check()
        running.append(step(planned))
        if len(running) > 1:
            yield jax.device_get(running.popleft())
    yield from map(jax.device_get, running)


def make_eval_step(forward: Callable[[Any, Any, Any], Any], mesh: Mesh | None = None) -> Callable[[Any, Any, Any], Any]:
    """Jits `forward(adapter, base, batch)`; its results are replicated on each device of the mesh.

    `forward` returns any tree of arrays, and so does the returned function, with the same arguments.
    """

    @jit
    def eval_step(adapter: Any, base: Any, batch: Any) -> Any:
        return forward(adapter, base, batch)

    return placement.eval_step_on(mesh, eval_step)


def run_through(
    step: Callable[[Any], Any],
    lengths: np.ndarray,
    buckets: tuple[int, ...],
    batch_size: int,
    make: Callable[..., Any],
    mesh: Mesh | None = None,
    check: Callable[[], None] = never,
) -> list[tuple[PlannedBatch, Any]]:
    """Runs `step` on every batch of a split, the shortest rows first.

    Args:
      step: step(batch), a compiled function; returns a tree of arrays.
      lengths: the rows' numbers of tokens, int (n,).
      buckets: the padded lengths of batches, ascending; the last is at least the longest row.
      batch_size: rows of each batch; on a mesh it is rounded up to a multiple of data x fsdp.
      make: make(planned, size, places) makes the rows of a planned batch at these places of its `size` rows: a tree of
        numpy arrays (len(places), ...), on which `step` is called.
      check: called before each batch; an exception that it raises ends the evaluation.

    Returns:
      Each batch of the plan with the result of `step`, as numpy arrays.
    """
    size = placement.round_up(mesh, batch_size)
    plan = plan_evaluation(lengths, buckets, size)

    def step_of(planned: PlannedBatch) -> Any:
        return step(placement.put_batch(mesh, size, partial(make, planned, size)))

    return list(zip(plan, results(step_of, plan, check), strict=True))
