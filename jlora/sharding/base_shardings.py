"""Chooses the axes of a mesh that split the leaves of a base."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jax.sharding import Mesh

from jlora.sharding.rules import leaf_shardings
from jlora.tree.leaf_paths import array_leaves, replace_leaves

if TYPE_CHECKING:
    from jaxtyping import PyTree


def base_shardings(base: PyTree, mesh: Mesh) -> PyTree:
    """Returns the tree of `base` with a NamedSharding for each array, also for those inside `Quantized` leaves.

    Kernels (in, out) are split over (fsdp, tensor), or over (tensor, fsdp) if the layer is the second of two
    consecutive linear layers (o_proj, down_proj and their like: `rules.ROW_PARALLEL`); embeddings (rows, features) over
    (tensor, fsdp). All other arrays, and axes that the mesh does not divide evenly, are not split.

    Args:
      base: tree of arrays or ShapeDtypeStructs with the paths of a model of `jlora.models`; leaves with other names are
        replicated on each device.
      mesh: with the axes data, fsdp and tensor, from `make_mesh`.
    """
    return replace_leaves(base, {path: leaf_shardings(path, leaf, mesh) for path, leaf in array_leaves(base).items()})
