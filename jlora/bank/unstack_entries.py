"""Adapters of stacked layers as adapters of single layers: for `jlora.models.unstack_layers`."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from jlora.errors import JloraError
from jlora.lora.entries import Adapter, Entry, Full, LowRank
from jlora.lora.spec import Spec
from jlora.tree.module_names import is_stack


def unstack_entries(adapter: Adapter) -> dict[str, Entry]:
    """Returns the adapter with an entry for each layer of a stack, for a base made by `unstack_layers`.

    "params/model/layers/q/kernel" with A (layers, r, in) becomes "params/model/layers/0/q/kernel" with A (r, in), and
    so on. Layers that are not adapted are left out; entries without a stack stay as they are.

    Raises:
      JloraError: only some layers of a leaf are trained in full.
    """
    found: dict[str, Entry] = {}
    for path, entry in adapter.items():
        parts = path.split("/")
        place = next((i for i, part in enumerate(parts) if is_stack(part)), None)
        if place is None:
            found[path] = entry
            continue
        if not isinstance(entry, LowRank) and (not isinstance(entry, Full) or entry.layers is not None):
            raise JloraError(f"{path}: expected an entry of all layers, found one of rows or of some layers")
        for number in range(_count_layers(entry)):
            layer = _take_layer(entry, number)
            if layer is not None:
                found["/".join([*parts[: place + 1], str(number), *parts[place + 1 :]])] = layer
    return found


def _count_layers(entry: LowRank | Full) -> int:
    return len(entry.ranks) if isinstance(entry, LowRank) else entry.value.shape[0]


def _take_layer(entry: LowRank | Full, number: int) -> Entry | None:
    layer: Any = jax.tree.map(lambda array: array[number], entry)
    if isinstance(layer, Full):
        return layer
    if not layer.ranks[number]:
        return None
    return dataclasses.replace(layer, spec=_without_first_axis(layer.axes), ranks=(layer.ranks[number],))


def _without_first_axis(axes: Spec) -> str:
    """Returns the spec of one layer, its letters in the order of the alphabet as `init` has them."""
    left = axes.leaf.replace(axes.stack[0], "")
    letters = str.maketrans(left, "abcdefghijklmnopq"[: len(left)])
    parts = (axes.stack[1:], axes.inputs, axes.outputs, left)
    return str(Spec(*(part.translate(letters) for part in parts)))
