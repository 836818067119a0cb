"""`merge` and `unmerge`: add the adapter's update to the base's leaves, and subtract it again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jlora.errors import JloraError
from jlora.lora.dora import gain
from jlora.lora.entries import Adapter, Entry, LowRank, Rows, insert_trained, require_fit, scale_b
from jlora.tree.leaf_paths import leaves_by_path, replace_leaves
from jlora.tree.quantized import Quantized, as_array

if TYPE_CHECKING:
    from jaxtyping import PyTree


def update(low_rank: LowRank) -> jax.Array:
    """Computes einsum(spec, a, b * scale): the update in the leaf's shape and the dtype of a and b, without DoRA."""
    return jnp.einsum(low_rank.spec, low_rank.a, scale_b(low_rank), precision=jax.lax.Precision.HIGHEST)


def merge(base: PyTree, adapter: Adapter) -> PyTree:
    """Merges the adapter into the base: the result alone computes what base and adapter compute together.

    A leaf with a `LowRank` entry becomes leaf + update, with DoRA times magnitude / |leaf + update|, computed in
    float32 and rounded once to the leaf's dtype. The values of `Full` and `Rows` entries replace the leaf, or its
    layers or rows. A quantized leaf with an entry becomes dense. Other leaves stay as they are. The given base is not
    changed.

    Raises:
      AdapterMismatchError: a path of the adapter is not in the base, or an entry has another shape than its leaf.
      JloraError: the update is for only one of the leaf's uses (a tied embedding), or a result is not finite (checked
        if arrays are concrete).
    """
    return replace_leaves(base, dict(merge_leaves(base, adapter)))


def merge_leaves(base: Any, adapter: Adapter) -> Iterator[tuple[str, jax.Array | Quantized]]:
    """Yields (path, leaf) of each leaf of the tree that `merge` returns, one at a time in the base's order.

    Raises:
      AdapterMismatchError: a path of the adapter is not in the base, or an entry has another shape than its leaf; this
        is raised before the first leaf is yielded.
      JloraError: an entry is for only one of its leaf's uses, or a result is not finite; raised at that leaf.
    """
    leaves = leaves_by_path(base)
    require_fit(adapter, leaves)
    for path, leaf in leaves.items():
        yield path, _merge_leaf(path, leaf, adapter[path]) if path in adapter else leaf


def _merge_leaf(path: str, leaf: jax.Array | Quantized, entry: Entry) -> jax.Array:
    if not isinstance(entry, Rows) and entry.only is not None:
        raise JloraError(
            f"{path}: expected an update for all uses of the weight, found one for the {entry.only} alone (a tied"
            " embedding). Save the adapter and load it on load_base(..., tie_word_embeddings=False), whose head has"
            " its own table; or adapt both uses with ensure_weight_tying=True"
        )
    if not isinstance(entry, LowRank):
        return _finite(path, insert_trained(leaf, entry))
    leaf = as_array(leaf)
    total = leaf.astype(jnp.float32) + update(entry)
    total = total if entry.magnitude is None else total * _in_leafs_axes(entry, gain(entry, leaf))
    return _finite(path, total.astype(leaf.dtype))


def unmerge(merged: PyTree, adapter: Adapter) -> PyTree:
    """Subtracts the low-rank updates: `unmerge(merge(base, adapter), adapter)` is the base up to two roundings.

    `Full` and `Rows` leaves are not changed: the values that they replaced are not in the merged tree. Leaves with a
    `LowRank` entry must be dense. With DoRA the gain is the root of a quadratic equation: the base is recovered up to
    some tens of roundings, and the update must be smaller than the weight.

    Raises:
      AdapterMismatchError: the path of a `LowRank` entry is not in the tree, or its shape is not that of the leaf.
      JloraError: a result is not finite (checked if arrays are concrete).
    """
    leaves = leaves_by_path(merged)
    low_rank = {path: entry for path, entry in adapter.items() if isinstance(entry, LowRank)}
    require_fit(low_rank, leaves)
    base = {}
    for path, entry in low_rank.items():
        total = leaves[path].astype(jnp.float32)
        if entry.magnitude is not None:
            total = total * _in_leafs_axes(entry, _inverse_gain(entry, total))
        base[path] = _finite(path, (total - update(entry)).astype(leaves[path].dtype))
    return replace_leaves(merged, base)


def _inverse_gain(entry: LowRank, merged: jax.Array) -> jax.Array:
    """Solves M = gain (W + U) with the known |W|^2 = |M / gain - U|^2, a quadratic, for 1 / gain (*stack, *out)."""
    axes = entry.axes
    out, kept = axes.leaf, axes.stack + axes.outputs
    assert entry.squared_norm is not None
    u = update(entry)
    mm, mu, uu = (jnp.einsum(f"{out},{out}->{kept}", x, y) for x, y in ((merged, merged), (merged, u), (u, u)))
    root = jnp.sqrt(jnp.maximum(mu * mu - mm * (uu - entry.squared_norm), 0))
    adapted = jnp.any(entry.scale != 0, axis=-1)
    adapted = jnp.expand_dims(adapted, tuple(range(adapted.ndim, mm.ndim)))
    return jnp.where(adapted, (mu + root) / mm, jnp.ones_like(mm))


def _in_leafs_axes(entry: LowRank, factor: jax.Array) -> jax.Array:
    """Reshapes a factor (*stack, *out) to the leaf's axes, with size 1 for its input axes."""
    axes = entry.axes
    kept = axes.stack + axes.outputs
    order = [kept.index(letter) for letter in axes.leaf if letter in kept]
    missing = [i for i, letter in enumerate(axes.leaf) if letter not in kept]
    return jnp.expand_dims(jnp.transpose(factor, order), missing)


def _finite(path: str, value: jax.Array) -> jax.Array:
    concrete = not isinstance(value, jax.core.Tracer) and jnp.issubdtype(value.dtype, jnp.floating)
    if concrete and not bool(jnp.isfinite(value).all()):
        raise JloraError(
            f"{path}: expected finite numbers after the merge, found NaN or infinity; is the adapter broken?"
        )
    return value
