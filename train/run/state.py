"""The train state, which steps change and checkpoints store."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax


class State(NamedTuple):
    """The train state.

    Attributes:
      trainable: the trained leaves, the first tree of `jlora.split(adapter)`.
      optimizer: the optimizer's state: tx.init(trainable) before the first step.
      step: int32 (), the number of steps taken.
    """

    trainable: Any
    optimizer: Any
    step: jax.Array
