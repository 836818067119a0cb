"""The train state, which steps change and checkpoints store."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax


class State(NamedTuple):
    """The train state: the trained leaves, the optimizer's state, and the number of steps taken (int32)."""

    trainable: Any
    optimizer: Any
    step: jax.Array
