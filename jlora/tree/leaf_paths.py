"""Accesses the leaves of a parameter tree by path: the tree's keys joined by "/"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jlora.errors import AdapterMismatchError, nearest
from jlora.tree.quantized import is_quantized


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Returns {path: leaf} of any pytree, in the tree's own order.

    `{"params": {"dense": {"kernel": x}}}` gives `{"params/dense/kernel": x}`. A quantized weight is one leaf.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_quantized)
    return {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf for keys, leaf in leaves}


def array_leaves(tree: Any) -> dict[str, Any]:
    """Returns {path: leaf} of the leaves that are arrays, without a module's functions, strings and plain numbers."""
    return {path: leaf for path, leaf in leaves_by_path(tree).items() if is_array(leaf)}


def is_array(leaf: Any) -> bool:
    """Returns whether functions are traced with this leaf as an array; all other leaves are passed unchanged.

    True for arrays of JAX and NumPy, NumPy's scalars, ShapeDtypeStructs and Quantized; false for Python's numbers.
    """
    return is_quantized(leaf) or isinstance(leaf, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct))


def replace_leaves(tree: Any, values: Mapping[str, Any]) -> Any:
    """Returns a copy of `tree` with the leaves at the paths of `values` replaced.

    Raises:
      AdapterMismatchError: a path of `values` is not in the tree.
    """
    leaves = leaves_by_path(tree)
    for path in values:
        require(path, leaves, "the base tree")
    structure = jax.tree_util.tree_structure(tree, is_leaf=is_quantized)
    return jax.tree_util.tree_unflatten(structure, [values.get(path, leaf) for path, leaf in leaves.items()])


def require(path: str, known: Iterable[str], where: str) -> None:
    """Raises AdapterMismatchError if `path` is not one of `known`.

    The message is "{path}: not in {where}", followed by the names in `known` that are most like it, if there are any.
    """
    known = list(known)
    if path not in known:
        raise AdapterMismatchError(f"{path}: not in {where}{nearest(path, known)}")
