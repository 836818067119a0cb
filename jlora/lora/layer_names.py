"""The dotted names of the layers in a leaf, or in the entry of an adapter: one if it is not a stack of layers."""

from __future__ import annotations

from collections.abc import Container

from jlora.lora.entries import LowRank
from jlora.tree.module_names import is_stacked, module_names


def layer_names(path: str, entry: LowRank) -> list[str]:
    """Returns the dotted names of the modules whose weights are in the entry, one for each of its `ranks`.

    The path `params/model/layers/q/kernel` with two ranks gives ["model.layers.0.q", "model.layers.1.q"].
    """
    return leaf_layer_names(path, (len(entry.ranks),), range(entry.scale.ndim - 1))


def leaf_layer_names(path: str, shape: tuple[int, ...], stack: Container[int]) -> list[str]:
    """Returns the names of the modules in a leaf: one for each layer of a stack, in order, else a single one.

    The path `params/layers/q/kernel`, a shape (2, 4, 4) and the stack (0,) give ["layers.0.q", "layers.1.q"], and with
    the stack () ["layers.q"]. `params/block/q/kernel` always gives ["block.q"].

    Args:
      path: it says whether the leaf may be a stack: a part that is not the last is `layer`, `layers` or `h`.
      shape: the leaf's.
      stack: the axes over which the function goes layer by layer. The leaf is a stack only if axis 0 is one of them.
    """
    return module_names(path, shape[0] if is_stacked(path) and 0 in stack else None)
