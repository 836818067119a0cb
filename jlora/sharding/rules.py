"""Chooses the axes of a mesh that split a model's weights and activations.

Weights are split over fsdp and gathered when they are used, one layer at a time. Over tensor they are never gathered:
of two consecutive linear layers the first has its outputs split (column-parallel), the second its inputs
(row-parallel).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jax.sharding import Mesh

from jlora.sharding.codes_shardings import codes_shardings
from jlora.sharding.mesh import fitting
from jlora.tree.quantized import is_quantized

ROW_PARALLEL = (
    "o_proj", "down_proj",  # Llama and its relatives
    "out_proj", "c_proj", "fc_out", "fc2", "attention/dense", "dense_4h_to_h",  # GPT-2 and its relatives
    "output/dense", "out_lin", "lin2",  # encoders
)  # fmt: skip
"""Path endings of the linear layers whose inputs are split; all others have their outputs split."""

TABLE = ("tensor", "fsdp")
"""The axes that split an embedding (rows, features)."""

AxisNames = tuple[Any, ...]
"""For each axis of an array: the mesh axis that splits it, a tuple of several, or None."""


def leaf_shardings(path: str, leaf: Any, mesh: Mesh) -> Any:
    """Returns the NamedSharding of the array (or ShapeDtypeStruct) at `path`: its axes are split as `leaf_names` says.

    An axis that the mesh does not divide evenly is not split. For a `Quantized` it returns one with a NamedSharding in
    the place of each stored array; where outputs would be split over `tensor`, they are split over tensor and fsdp
    together, and inputs are not.

    Args:
      mesh: with the axes data, fsdp and tensor.
    """
    names = leaf_names(path, leaf.ndim)
    if not is_quantized(leaf):
        return fitting(mesh, names, leaf.shape)
    if names[-1] == "tensor":
        names = (*names[:-2], None, ("tensor", "fsdp"))  # inputs are grouped in blocks, perhaps too few to split
    return dataclasses.replace(leaf, stored=codes_shardings(leaf, mesh, names))


def leaf_names(path: str, ndim: int) -> AxisNames:
    """Returns the mesh axes that split a leaf's axes: kernels and embeddings are split, norms and biases are not.

    `("model/layers/mlp/up_proj/kernel", 3)` gives (None, "fsdp", "tensor"): the last two axes are those of
    `kernel_names`, or of TABLE for a leaf called embedding, and the axes before them are not split. A leaf called
    kernel or weight with one axis is not split either.

    Args:
      path: of the leaf, from `leaves_by_path`.
      ndim: the number of the leaf's axes.
    """
    module, _, parameter = path.rpartition("/")
    names: AxisNames = ()
    if parameter == "embedding":
        names = TABLE
    elif parameter in ("kernel", "weight") and ndim > 1:
        names = kernel_names(module)
    return (*[None] * (ndim - len(names)), *names)


def kernel_names(module: str) -> AxisNames:
    """Returns the mesh axes that split the kernel (in, out) of the linear layer at this path.

    They are ("tensor", "fsdp") if the path ends in one of ROW_PARALLEL, such as o_proj or down_proj, else ("fsdp",
    "tensor").
    """
    return ("tensor", "fsdp") if module.endswith(ROW_PARALLEL) else ("fsdp", "tensor")
