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
    """Returns the leaf's axes that the given dims of `weight` consist of (`Update.axes`), ascending, each once.

    With axes ((0,), (1, 2)), the dims [1] give (1, 2).
    """
    return tuple(sorted({axis for dim in dims for axis in weight.axes[dim]}))


def stack_axes(weight: Update, used: set[int], batch: Sequence[int] = ()) -> tuple[int, ...]:
    """Returns the axes of a leaf that are scanned, batched or indexed, ascending; they are `Use.stack`.

    These are `weight.stack`, and those of `batch` and `weight.picked` that are not in `used`: an axis that a batch
    covers only in part (heads of a kernel that has them in its outputs) is not a stack. `picked` does not count if the
    weight has fewer than two dims.

    Args:
      weight: its `axes`, `stack` and `picked` are read.
      used: axes of the leaf that are inputs or outputs; those that are scanned stay in the result.
      batch: axes of the leaf that a product batches over.
    """
    picked = set(weight.picked) if len(weight.axes) > 1 else set()
    return tuple(sorted({*weight.stack, *({*batch, *picked} - used)}))
