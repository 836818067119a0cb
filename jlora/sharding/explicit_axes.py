"""Supports arrays whose sharding is part of their type: meshes with Explicit axes, the default of `jax.make_mesh`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jlora.ops.products import einsum

LetterAxes = Mapping[str, Any]
"""{an einsum's letter: the mesh axes over which it is split, or None}."""


def explicit_mesh(x: jax.Array) -> Any:
    """Returns the mesh in the array's type; None if it has no explicit axes, so that JAX chooses the shardings."""
    mesh = jax.typeof(x).sharding.mesh
    return mesh if AxisType.Explicit in (mesh.axis_types or ()) else None


def axis_names(x: jax.Array) -> tuple:
    """Returns, for each axis of the array, the mesh axis over which its type splits it, a tuple of several, or None."""
    spec = jax.typeof(x).sharding.spec
    return (*spec, *[None] * (x.ndim - len(spec)))


def split_like(x: jax.Array, other: jax.Array) -> jax.Array:
    """Gives `x` the sharding of `other`, an array with as many axes; axes of size 1 are not split.

    If `other` is not on a mesh with explicit axes, `x` is returned unchanged.
    """
    mesh = explicit_mesh(other)
    if mesh is None:
        return x
    return _put(x, mesh, [None if size == 1 else name for size, name in zip(x.shape, axis_names(other), strict=True)])


def first_place(x: jax.Array, dim: int) -> jax.Array:
    """Returns `x[:1]` on axis `dim`, which is gathered first, because JAX cannot slice an axis that is split."""
    mesh = explicit_mesh(x)
    if mesh is not None:
        x = _put(x, mesh, [None if axis == dim else name for axis, name in enumerate(axis_names(x))])
    return jax.lax.slice_in_dim(x, 0, 1, axis=dim)


def split_einsum(form: str, arrays: Sequence[jax.Array], names: LetterAxes, **options: Any) -> jax.Array:
    """Computes the einsum; on a mesh with explicit axes, operands and result are split as `names` says.

    A mesh axis that would split two axes of an array splits only the first. `names` is {letter of `form`: mesh axes, or
    None}; letters that it does not have are not split. `options` are those of `einsum`.
    """
    mesh = explicit_mesh(arrays[0])
    if mesh is None:
        return einsum(form, *arrays, **options)
    inputs, out = form.split("->")
    operands = zip(arrays, inputs.split(","), strict=True)
    arrays = [_put(array, mesh, [names.get(letter) for letter in letters]) for array, letters in operands]
    sharding = NamedSharding(mesh, _spec([names.get(letter) for letter in out]))
    return einsum(form, *arrays, out_sharding=sharding, **options)


def _put(x: jax.Array, mesh: Any, names: Sequence[Any]) -> jax.Array:
    return jax.sharding.reshard(x, NamedSharding(mesh, _spec(names)))


def _spec(names: Sequence[Any]) -> PartitionSpec:
    taken: set[str] = set()
    kept = []
    for name in names:
        axes = set(name if isinstance(name, tuple) else (name,)) - {None}
        kept.append(None if axes & taken else name)
        taken |= axes
    return PartitionSpec(*kept)
