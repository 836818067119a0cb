"""How a function uses a leaf of its base, in axes of the leaf."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jlora.transform.adapted_weight import Update


@dataclasses.dataclass(frozen=True)
class Use:
    """How a function uses one leaf, in axes of the leaf.

    Attributes:
      kind: "linear", "lookup", "conv", or the name of a primitive that has no rule.
      stack: axes over which scans or batches go, or of which one place at a time is taken; the update has them
        in both factors.
      inputs: axes that are contracted or looked up, those of A.
      outputs: the rest, those of B.
    """

    kind: str
    stack: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()


def leaf_axes(weight: Update, dims: Sequence[int]) -> tuple[int, ...]:
    """The leaf's axes in the given dims, in rising order."""
    return tuple(sorted({axis for dim in dims for axis in weight.axes[dim]}))


def stack_axes(weight: Update, used: set[int], batch: Sequence[int] = ()) -> tuple[int, ...]:
    """Returns the axes that scans, batches and single indices go over; the indices of a vector are not layers.

    An axis of which a batch covers only a part (heads of a kernel that has them in its outputs) is not a stack.
    """
    picked = set(weight.picked) if len(weight.axes) > 1 else set()
    return tuple(sorted({*weight.stack, *({*batch, *picked} - used)}))
