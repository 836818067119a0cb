"""Which axes of a mesh split the leaves of a base."""

from __future__ import annotations

from typing import Any

from jax.sharding import Mesh

from jlora.sharding.rules import leaf_shardings
from jlora.tree.leaf_paths import array_leaves, replace_leaves


def base_shardings(base: Any, mesh: Mesh) -> Any:
    """The tree of `base` with a NamedSharding for each array, those inside of `Quantized` leaves too.

    Kernels (in, out) are split over (fsdp, tensor), or over (tensor, fsdp) where a layer takes what the one before
    gives; embeddings (rows, features) over (tensor, fsdp). All else, and an axis that they do not divide, is whole.

    Args:
      base: tree of arrays or ShapeDtypeStructs with the paths of a model of `jlora.models`; leaves with other names
        lie whole on each device.
    """
    return replace_leaves(base, {path: leaf_shardings(path, leaf, mesh) for path, leaf in array_leaves(base).items()})
