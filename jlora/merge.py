"""`merge` and `unmerge`: the adapter's update added to the base's leaves, and taken away again."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jlora.adapter import Adapter, Full, LowRank, require_fit, scaled_b
from jlora.paths import leaves_by_path, replace_leaves


def update(low_rank: LowRank) -> jax.Array:
    """einsum(spec, a, b * scale): the update in the leaf's shape, float32."""
    return jnp.einsum(low_rank.spec, low_rank.a, scaled_b(low_rank), precision=jax.lax.Precision.HIGHEST)


def merge(base: Any, adapter: Adapter) -> Any:
    """A base tree that computes alone what base and adapter compute together.

    Sums are formed in float32 and rounded once to the leaf's dtype. The given base is left as it is.

    Raises:
      JloraError: a path of the adapter is not in the base, or an entry of another shape than its leaf.
    """
    return _added(base, adapter, 1.0)


def unmerge(merged: Any, adapter: Adapter) -> Any:
    """Takes the low-rank updates away again: `unmerge(merge(base, adapter), adapter)` is the base to two roundings.

    Leaves trained whole (`Full`) stay as they are: what they replaced is not in the merged tree.

    Raises:
      JloraError: as for `merge`.
    """
    return _added(merged, {path: entry for path, entry in adapter.items() if isinstance(entry, LowRank)}, -1.0)


def _added(base: Any, adapter: Adapter, sign: float) -> Any:
    leaves = leaves_by_path(base)
    require_fit(adapter, leaves)
    changed: dict[str, jax.Array] = {}
    for path, entry in adapter.items():
        if isinstance(entry, Full):
            changed[path] = entry.value
        else:
            total = leaves[path].astype(jnp.float32) + sign * update(entry)
            changed[path] = total.astype(leaves[path].dtype)
    return replace_leaves(base, changed)
