"""The dotted names of the layers in a leaf, or in the entry of an adapter: one if it is not a stack of layers."""

from __future__ import annotations

from collections.abc import Container

from jlora.lora.entries import LowRank
from jlora.tree.module_names import is_stacked, module_names


def layer_names(path: str, entry: LowRank) -> list[str]:
    """Returns the names of the entry's layers, as many as it has ranks."""
    return leaf_layer_names(path, (len(entry.ranks),), range(entry.scale.ndim - 1))


def leaf_layer_names(path: str, shape: tuple[int, ...], stack: Container[int]) -> list[str]:
    """Returns the names of the layers in a leaf: one for each layer of a stack, in order, else a single one.

    Args:
      shape: the leaf's.
      stack: the axes over which the function goes layer by layer. Axis 0 must be one of them: the name alone does not
        tell whether the leaf is a stack.
    """
    return module_names(path, shape[0] if is_stacked(path) and 0 in stack else None)
