"""Which axes of a mesh split the arrays of an adapter."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from jax.sharding import Mesh

from jlora.lora.entries import Adapter, Entry, LowRank, Rows
from jlora.sharding.mesh import fitting
from jlora.sharding.rules import leaf_names

Mode = Literal["replicated", "inherit"]
"""How adapters lie: whole on each device, or split as the weights that they are for."""


def adapter_shardings(adapter: Adapter, mesh: Mesh, mode: Mode = "replicated") -> dict[str, Any]:
    """The adapter with a NamedSharding for each of its arrays.

    Args:
      adapter: of arrays or ShapeDtypeStructs.
      mode: "replicated" has all of it on each device; with "inherit" its axes are split as those of the base's leaf
        that they stand for: the optimizer's state takes a part of the memory, and steps gather the adapter.
    """
    return {path: _entry_shardings(path, entry, mesh, mode) for path, entry in adapter.items()}


def _entry_shardings(path: str, entry: Entry, mesh: Mesh, mode: Mode) -> Any:
    leaf, letters = _letters(entry)
    names = dict(zip(leaf, leaf_names(path, len(leaf)), strict=True)) if mode == "inherit" else {}
    arrays = {field: array for field in letters if (array := getattr(entry, field)) is not None}
    shardings: dict[str, Any] = {
        field: fitting(mesh, [names.get(letter) for letter in letters[field]], array.shape)
        for field, array in arrays.items()
    }
    return dataclasses.replace(entry, **shardings)


def _letters(entry: Entry) -> tuple[str, dict[str, str]]:
    """(a letter for each axis of the leaf, and those of each array of the entry: r for one that the leaf has not)."""
    if isinstance(entry, LowRank):
        axes = entry.axes
        gain = axes.stack + axes.outputs
        return axes.leaf, {
            "a": axes.a,
            "b": axes.b,
            "scale": f"{axes.stack}r",
            "magnitude": gain,
            "squared_norm": gain,
        }
    leaf = "abcdefgh"[: len(entry.value.shape)]
    return leaf, {"value": "r" + leaf.replace(leaf[entry.axis], "") if isinstance(entry, Rows) else leaf}
