"""Describes how a function uses a leaf of its base, in terms of the leaf's axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jlora.transform.adapted_weight import Update


@dataclasses.dataclass(frozen=True)
class Use:
    """How a function uses one leaf, in terms of the leaf's axes.

    Attributes:
      kind: "linear", "lookup", "conv", or the name of a primitive that has no rule.
      stack: axes that are scanned or batched over, or from which a single index is taken; both A and B have them.
      inputs: axes that are contracted or looked up; A has them.
      outputs: all other axes; B has them.
    """

    kind: str
    stack: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()


def leaf_axes(weight: Update, dims: Sequence[int]) -> tuple[int, ...]:
    """Returns the leaf's axes that the given dims of `weight` consist of (`Update.axes`), ascending, each once."""
    return tuple(sorted({axis for dim in dims for axis in weight.axes[dim]}))


def stack_axes(weight: Update, used: set[int], batch: Sequence[int] = ()) -> tuple[int, ...]:
    """Returns the axes that are scanned, batched or indexed; indices of a vector do not count.

    Args:
      used: axes of the leaf that are inputs or outputs; those that are scanned stay in the result.
      batch: axes of the leaf that a product batches over.

    An axis that a batch covers only in part (heads of a kernel that has them in its outputs) is not a stack.
    """
    picked = set(weight.picked) if len(weight.axes) > 1 else set()
    return tuple(sorted({*weight.stack, *({*batch, *picked} - used)}))
