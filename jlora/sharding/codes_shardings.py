"""Chooses the shardings of the codes and scales of a quantized weight."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from jlora.sharding.mesh import fitting
from jlora.tree.quantized import Codes, Quantized, storage_order


def codes_shardings(leaf: Quantized, mesh: Any, names: Sequence[Any]) -> Codes:
    """Returns the codes of `leaf` with NamedShardings in place of the arrays, for a weight that is split by `names`.

    Blocks are never split, nor axes that the mesh does not divide evenly.

    Args:
      names: for each axis of the weight (*stack, *layer): a mesh axis, a tuple of several, or None. If a layer has
        several output (or input) axes, the name of the first is used.
    """
    count, order = len(leaf.stack), storage_order(leaf.layer, leaf.inputs)
    stack, row, column = tuple(names[:count]), names[count + order[0]], names[count + leaf.inputs[0]]
    return leaf.stored.shardings(functools.partial(fitting, mesh), stack, row, column)
