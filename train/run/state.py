"""The state of a run's training, which its steps change and its checkpoints hold."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax


class State(NamedTuple):
    """What a step changes: the trained leaves, the optimizer's state, and the number of steps taken (int32)."""

    trainable: Any
    optimizer: Any
    step: jax.Array
