"""Sharding inside a model's layers: weights are gathered where they are used, activations are split."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import jax
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jlora.ops.products import dot_general
from jlora.sharding.mesh import BATCH, current_mesh, fitting
from jlora.sharding.rules import TABLE, AxisNames, kernel_names


def by_rows(x: jax.Array, last: str | None = None) -> jax.Array:
    """Splits the rows of hidden states (B, ..., features) over the mesh, and the features if `last` names a mesh axis.

    The mesh is the one that `jax.set_mesh` has set, with the axes data, fsdp and tensor; rows are split over data and
    fsdp. Without one x is returned unchanged. An axis that the mesh does not divide evenly is not split.
    """
    return _constrain(x, (*BATCH, *[None] * (x.ndim - 2), last))


def by_heads(x: jax.Array) -> jax.Array:
    """Splits the heads of attention's inputs (B, T, heads, width) over `tensor`, and the rows over data and fsdp.

    An axis that the mesh does not divide evenly is not split; without a mesh x is returned unchanged.
    """
    return _constrain(x, (*BATCH, None, "tensor", None))


def by_key_heads(x: jax.Array) -> jax.Array:
    """Splits the heads of a cache's keys or values (..., key heads, a, b) over `tensor`.

    A number of heads that the mesh does not divide evenly is not split; without a mesh x is returned unchanged.
    """
    return _constrain(x, (*[None] * (x.ndim - 3), "tensor", None, None))


_IN_REMAT = ContextVar("_IN_REMAT", default=False)
"""Whether the layer that is being traced is rematerialized (`remat_layer`)."""


def gather_weight(weight: jax.Array, names: AxisNames) -> jax.Array:
    """Gathers a weight over fsdp; over the other mesh axes it stays split. Without a mesh it is returned unchanged.

    `names` has, for each axis of the weight, the mesh axis that splits it, or None.
    """
    mesh = current_mesh()
    if mesh is not None and mesh.shape["fsdp"] > 1:
        # Without the barrier XLA gathers a layer's slice in another layout, and copies the stack of all layers for it.
        weight = lax.optimization_barrier(weight)
    return _constrain(weight, tuple(None if name == "fsdp" else name for name in names))


def gather_table(*arrays: jax.Array, **options: Any) -> tuple[jax.Array, ...]:
    """Replaces Flax's `promote_dtype` in an embedding: also gathers the table, which is the last array, over fsdp.

    It takes arrays, `dtype` and `inexact`, and returns the tuple of arrays in one dtype, as `promote_dtype` does.
    """
    return promote_dtype(*arrays[:-1], gather_weight(arrays[-1], TABLE), **options)


def product(x: jax.Array, kernel: jax.Array, module: str, dtype: Any) -> jax.Array:
    """Multiplies x (..., in) by the kernel (in, out) of the linear layer at path `module`, in `dtype`.

    On a mesh the kernel is gathered for the product, and again for its derivative. The path decides how it is split
    (`kernel_names`).
    """
    names = kernel_names(module)

    def multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
        kernel = gather_weight(kernel, names).astype(dtype)
        return dot_general(x.astype(dtype), kernel, (((x.ndim - 1,), (0,)), ((), ())))

    if current_mesh() is None:
        return multiply(x, kernel)
    if not _IN_REMAT.get():  # a rematerialized layer gathers again anyway
        multiply = jax.checkpoint(multiply, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False)
    result = multiply(x, kernel)
    return by_rows(result, "tensor" if names[1] == "tensor" else None)


KEPT = "kept"
"""The checkpoint name of the arrays that a layer keeps for its backward pass; all others are recomputed."""


def keep(x: jax.Array) -> jax.Array:
    """Returns x, marked to be kept for the backward pass: the result of a product or of blockwise attention."""
    return checkpoint_name(x, KEPT)


def remat_layer(layer: Any, *, remat: bool, prevent_cse: bool) -> Any:
    """Applies Flax's `nn.remat` to a layer's class and returns the class.

    Products inside then need no checkpoint of their own.

    Args:
      layer: a linen class, called with positional arguments.
      remat: if true, nothing inside the layer is kept for the backward pass; otherwise only what `keep` marks.
      prevent_cse: as in `nn.remat`; false inside a scan.
    """

    class Rematerialized(layer):
        def __call__(self, *arguments: Any) -> Any:
            token = _IN_REMAT.set(True)
            try:
                return super().__call__(*arguments)
            finally:
                _IN_REMAT.reset(token)

    Rematerialized.__name__ = Rematerialized.__qualname__ = layer.__name__  # linen names parameters after it
    policy = None if remat else jax.checkpoint_policies.save_only_these_names(KEPT)
    return nn.remat(Rematerialized, prevent_cse=prevent_cse, policy=policy)


def are_heads_split() -> bool:
    """Returns whether attention's heads are on different devices: a mesh is set, and its axis `tensor` is above 1."""
    mesh = current_mesh()
    return mesh is not None and mesh.shape["tensor"] > 1


def _constrain(x: jax.Array, names: AxisNames) -> jax.Array:
    mesh = current_mesh()
    return x if mesh is None else lax.with_sharding_constraint(x, fitting(mesh, names, x.shape))
