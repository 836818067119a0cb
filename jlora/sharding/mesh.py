"""Makes a mesh of devices with the axes data, fsdp and tensor, and places arrays on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from jlora.errors import JloraError

AXES = ("data", "fsdp", "tensor")
"""The axes of a mesh. Rows of a batch are split over data and fsdp, weights over fsdp and tensor."""

BATCH = PartitionSpec(("data", "fsdp"))
"""How a batch is split: devices that differ only in `tensor` have the same rows."""


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """Makes a mesh of all devices, or of those given.

    One of the three sizes may be -1: the number of devices divided by the others.

    Args:
      data: the number of parts of the batch; each part has a copy of all weights.
      fsdp: the number of parts of the batch and of the weights, which are gathered layer by layer when they are used.
      tensor: the number of parts of the weights that are never gathered; layers compute with them in parallel.
      devices: None means `jax.devices()`.

    Raises:
      JloraError: a size is neither positive nor -1, more than one is -1, or their product is not the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
    for name, size in sizes.items():
        if size < 1 and size != -1:
            raise JloraError(f"mesh.{name}: expected a positive number, or -1 for what the others leave; found {size}")
    given = [size for size in sizes.values() if size != -1]
    if len(given) < len(AXES) - 1:
        raise JloraError(f"mesh: expected -1 for one axis at most; found {sizes}")
    rest = len(devices) // math.prod(given)
    shape = [rest if size == -1 else size for size in sizes.values()]
    if math.prod(shape) != len(devices):
        raise JloraError(f"mesh: expected sizes whose product is the number of devices, {len(devices)}; found {sizes}")
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def fitting(mesh: Any, names: Sequence[Any], shape: Sequence[int]) -> NamedSharding:
    """Returns the sharding of an array of this shape, with each axis split over the mesh axes named for it.

    An axis whose size is not a multiple of theirs, multiplied, is not split: on a mesh with fsdp 2 and tensor 2, names
    ("fsdp", "tensor") and shape (4, 3) give PartitionSpec("fsdp", None).

    Args:
      names: for each axis of `shape` the name of a mesh axis, a tuple of several names, or None.
    """
    spec = (name if size % _parts(mesh, name) == 0 else None for name, size in zip(names, shape, strict=True))
    return NamedSharding(mesh, PartitionSpec(*spec))


def _parts(mesh: Any, name: Any) -> int:
    names = name if isinstance(name, tuple) else () if name is None else (name,)
    return math.prod(mesh.shape[axis] for axis in names)


def on_devices(
    shape: tuple[int, ...], sharding: Sharding, part: Callable[[tuple[slice, ...]], np.ndarray | jax.Array]
) -> jax.Array:
    """Builds a global array of `shape` from shards. `part(index)` returns the shard at `index`.

    It is called once for each distinct shard of this process's devices. `index` has a slice for each axis, with start,
    stop and step as numbers.
    """
    devices: dict[tuple[tuple[int, int, int], ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(axis.indices(size) for axis, size in zip(index or (), shape, strict=True))
        devices.setdefault(bounds, []).append(device)
    parts = []
    for bounds, same in devices.items():
        value = part(tuple(slice(*axis) for axis in bounds))
        parts += [jax.device_put(value, device, may_alias=False) for device in same]
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def set_mesh(mesh: Mesh | None) -> AbstractContextManager:
    """Sets the mesh, if there is one. Everything computed inside the block runs on all its devices."""
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def current_mesh() -> Any:
    """Returns the mesh of AXES that `jax.set_mesh` has set; None if there is none, and inside a shard_map."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh if mesh.axis_names == AXES and set(mesh.axis_types) == {AxisType.Auto} else None
