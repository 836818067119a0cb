"""How a model's weights and an adapter lie on a mesh."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from jax.sharding import Mesh

from jlora.lora import dora
from jlora.lora.entries import Adapter, Entry, LowRank, Rows
from jlora.models.mesh_ops import leaf_names, leaf_shardings
from jlora.sharding.mesh import fitting
from jlora.tree.leaf_paths import array_leaves, replace_leaves

Mode = Literal["replicated", "inherit"]
"""How adapters lie: whole on each device, or split as the weights that they are for."""


def base_shardings(base: Any, mesh: Mesh) -> Any:
    """The tree of `base` with a NamedSharding for each array, those inside of `Quantized` leaves too.

    Kernels (in, out) are split over (fsdp, tensor), or over (tensor, fsdp) where a layer takes what the one before
    gives; embeddings (rows, features) over (tensor, fsdp). All else, and an axis that they do not divide, is whole.

    Args:
      base: tree of arrays or ShapeDtypeStructs with the paths of a model of `jlora.models`; leaves with other names
        lie whole on each device.
    """
    return replace_leaves(base, {path: leaf_shardings(path, leaf, mesh) for path, leaf in array_leaves(base).items()})


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
        stack, inputs, outputs, leaf = dora.letters(entry)
        a, b, gain = f"{stack}r{inputs}", f"{stack}r{outputs}", f"{stack}{outputs}"
        return leaf, {"a": a, "b": b, "scale": f"{stack}r", "magnitude": gain, "squared_norm": gain}
    leaf = "abcdefgh"[: len(entry.value.shape)]
    return leaf, {"value": "r" + leaf.replace(leaf[entry.axis], "") if isinstance(entry, Rows) else leaf}
