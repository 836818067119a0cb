"""Arrays that lie on several devices or processes, as one."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def to_host(tree: Any) -> Any:
    """Copies all arrays to numpy, gathered one by one; with several processes all must call it."""
    return jax.tree.map(leaf_to_host, tree)


def leaf_to_host(leaf: Any) -> np.ndarray:
    """Returns a copy of one array, gathered from all devices, as numpy; with several processes all must call it."""
    return np.array(gather(leaf), copy=True)  # a view would change with the donated buffer that it looks at


def gather(leaf: Any) -> Any:
    """Replicates an array that several processes share, so that each has all of it.

    Returns any other leaf, numpy arrays included, unchanged.
    """
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return leaf
    return jax.device_put(leaf, NamedSharding(placed_mesh(leaf), PartitionSpec()))


def placed_mesh(leaf: Any) -> Any:
    """Returns the mesh of the array's NamedSharding, or None if it has another sharding or is not on a device."""
    sharding = getattr(leaf, "sharding", None)
    return sharding.mesh if isinstance(sharding, NamedSharding) else None
