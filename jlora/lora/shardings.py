"""Chooses the axes of a mesh that split the arrays of an adapter."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from jax.sharding import Mesh

from jlora.lora.entries import Adapter, Entry, LowRank, Rows
from jlora.sharding.mesh import fitting
from jlora.sharding.rules import leaf_names

Mode = Literal["replicated", "inherit"]
"""How adapters are placed: replicated on each device, or split like the weights that they adapt."""


def adapter_shardings(adapter: Adapter, mesh: Mesh, mode: Mode = "replicated") -> dict[str, Any]:
    """Returns the adapter's tree with a NamedSharding for each of its arrays.

    Args:
      adapter: of arrays or ShapeDtypeStructs.
      mesh: from `make_mesh`, with the axes data, fsdp and tensor.
      mode: "replicated" puts all of it on each device. "inherit" splits its axes like the corresponding axes of the
        base's leaf: the inputs of A and the outputs of B are split over fsdp or tensor, unless the number of parts does
        not divide them; r is not split. The optimizer's state is then split too, but each step has to gather the
        adapter.
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
    """Returns (a letter for each axis of the leaf, {array of the entry: its letters}); only the entry has an axis r."""
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
