"""Checkpoints of a run by orbax: one atomic folder a step, written while training goes on.

runs/sst2/checkpoints/120/  trained leaves, optimizer state, step, the best leaves so far, and notes (JSON)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jlora.paths import leaves_by_path
from train.step import State


@dataclasses.dataclass(frozen=True)
class Best:
    """The best evaluation so far: trained leaves on the host, the metric's value, the step, and how many
    evaluations since then were no better. `value` is None before the first evaluation."""

    trainable: Any
    value: float | None = None
    step: int = 0
    stale: int = 0


@contextmanager
def open_checkpoints(folder: Path, keep: int) -> Iterator[ocp.CheckpointManager]:
    """The run's checkpoints, of which the newest `keep` stay; leaving waits for what is still being written."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
    manager = ocp.CheckpointManager(folder.resolve(), options=options)
    try:
        yield manager
    finally:
        manager.close()


def save(manager: ocp.CheckpointManager, state: State, best: Best) -> None:
    """Writes a checkpoint of `state.step` in the background; the arrays are copied first."""
    arrays = {f"state/{path}": leaf for path, leaf in leaves_by_path(state).items()}
    arrays |= {f"best/{path}": leaf for path, leaf in leaves_by_path(best.trainable).items()}
    notes = {"value": best.value, "step": best.step, "stale": best.stale}
    manager.save(
        int(state.step),
        args=ocp.args.Composite(arrays=ocp.args.StandardSave(to_host(arrays)), best=ocp.args.JsonSave(notes)),
    )


def restore(manager: ocp.CheckpointManager, like: State) -> tuple[State, Best]:
    """The newest checkpoint, or (`like`, an empty Best) where there is none yet."""
    step = manager.latest_step()
    if step is None:
        return like, Best(to_host(like.trainable))
    expected = {f"state/{path}": leaf for path, leaf in leaves_by_path(like).items()}
    expected |= {f"best/{path}": leaf for path, leaf in leaves_by_path(like.trainable).items()}
    template = {path: np.empty(leaf.shape, leaf.dtype) for path, leaf in expected.items()}
    found = manager.restore(
        step, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(template), best=ocp.args.JsonRestore())
    )
    state = _filled(like, "state/", found.arrays)
    best = _filled(like.trainable, "best/", found.arrays)
    return jax.tree.map(jnp.array, state), Best(to_host(best), **found.best)


def to_host(tree: Any) -> Any:
    """Copies of all arrays as numpy: a view would change with the donated buffer that it looks at."""
    return jax.tree.map(lambda leaf: np.array(leaf, copy=True), tree)


def _filled(like: Any, prefix: str, arrays: dict[str, np.ndarray]) -> Any:
    leaves = [arrays[prefix + path] for path in leaves_by_path(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
