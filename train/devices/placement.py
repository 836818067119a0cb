"""The devices of a run: their mesh, where weights, adapter and batches lie on it, and what is gathered from it.

Without a mesh, on a single device, every function here gives back what it was given.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jlora.errors import JloraError
from jlora.lora.adapted_model import Adapted
from jlora.lora.shardings import adapter_shardings
from jlora.sharding.base import base_shardings
from jlora.sharding.gather import gather, leaf_to_host, placed_mesh, to_host
from jlora.sharding.mesh import BATCH, make_mesh
from train.config.run_config import RunConfig
from train.devices.compilation import jit
from train.devices.processes import is_first


def mesh_of(config: RunConfig, devices: Sequence[Any] | None = None) -> Mesh | None:
    """The mesh of all devices (or of those given) that the config asks for; None where there is one device.

    Raises:
      JloraError: sizes that do not fit the devices, a batch that they cannot share evenly.
    """
    asked = config.mesh
    mesh = make_mesh(asked.data, asked.fsdp, asked.tensor, devices)
    if mesh.size == 1:
        return None
    require_shared(config.train.batch_size, mesh.shape)
    return mesh


def require_shared(rows: int, sizes: Mapping[str, int]) -> None:
    """Raises JloraError where a batch of so many rows cannot be shared evenly on a mesh of these sizes."""
    parts = math.prod(sizes[name] for name in BATCH[0])
    if rows % parts:
        named = ", ".join(f"mesh.{name} {size}" for name, size in sizes.items())
        raise JloraError(
            f"train.batch_size: expected a multiple of {parts}, the parts of a batch on"
            f" {math.prod(sizes.values())} devices ({named}); found {rows}"
        )


def row_parts(mesh: Mesh | None) -> int:
    """In how many parts a batch's rows are split."""
    return 1 if mesh is None else math.prod(mesh.shape[name] for name in BATCH[0])


def rounded_up(mesh: Mesh | None, rows: int) -> int:
    """The rows of a batch in evaluation: as many as asked for, or a few more that the devices can share evenly."""
    parts = row_parts(mesh)
    return -(-rows // parts) * parts


def put_adapted(mesh: Mesh | None, adapted: Adapted, config: RunConfig) -> Adapted:
    """Base and adapter on the mesh. Weights that are trained whole lie as the base's do."""
    if mesh is None:
        return adapted
    return dataclasses.replace(
        adapted,
        base=_put(adapted.base, base_shardings(adapted.base, mesh)),
        adapter=put_adapter(mesh, adapted.adapter, config),
        initial=to_host(adapted.initial),
    )


def put_adapter(mesh: Mesh | None, adapter: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """The adapter on the mesh as the config has it, or on the device."""
    if mesh is None:
        return jax.device_put(adapter)
    mode = config.mesh.adapters if config.method == "lora" else "inherit"
    return _put(adapter, adapter_shardings(adapter, mesh, mode))


def put_rest(mesh: Mesh | None, tree: Any) -> Any:
    """The tree with those of its arrays that are not on the mesh yet whole on each device."""
    if mesh is None:
        return tree
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: leaf if placed_mesh(leaf) == mesh else _put(leaf, whole), tree)


def put_batch(mesh: Mesh | None, size: int, make: Callable[[np.ndarray], Any]) -> Any:
    """A batch of `size` rows on the mesh, of which each process makes those of its own devices.

    Args:
      make: make(places) gives a tree of numpy arrays (len(places), ...), the rows at these places of the batch (int64,
        ascending).
    """
    if mesh is None:
        return make(np.arange(size))
    sharding = NamedSharding(mesh, BATCH)
    parts = [np.arange(size)[index] for index in sharding.addressable_devices_indices_map((size,)).values()]
    places = np.unique(np.concatenate(parts))

    def put(rows: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            return rows[np.searchsorted(places, np.arange(size)[index[0]])]

        return jax.make_array_from_callback((size, *rows.shape[1:]), sharding, part)

    return jax.tree.map(put, make(places))


def train_step_on(mesh: Mesh | None, step: Any, state: Any) -> Callable:
    """A jitted train step (`train.loop.step`) for a mesh, whose state stays where `state`, arrays on the mesh, lies."""
    if mesh is None:
        return step
    kept = jax.tree.map(lambda leaf: leaf.sharding, state)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return _under(mesh, jit(step.__wrapped__, donate_argnums=0, out_shardings=(kept, everywhere)))


def eval_step_on(mesh: Mesh | None, step: Any) -> Callable:
    """A jitted function for a mesh, what it gives whole on each device."""
    return (
        step
        if mesh is None
        else _under(mesh, jit(step.__wrapped__, out_shardings=NamedSharding(mesh, PartitionSpec())))
    )


def kept(tree: Any) -> Any:
    """Copies of all arrays in the host's memory, which stay when these are donated: numpy; of an array that several
    processes share each keeps its own parts, in a jax.Array.
    """
    return jax.tree.map(_kept_leaf, tree)


def put_like(placed: Any, tree: Any) -> Any:
    """Copies the arrays of a tree that `kept` returned to where those of `placed` are."""
    return jax.tree.map(_like_leaf, placed, tree)


def to_first(tree: Any) -> Any:
    """A tree of arrays that the process which writes can read, gathered layer by layer; the others, which must take
    part, get None for each.
    """
    return jax.tree.map(_on_first, tree)


def set_mesh(mesh: Mesh | None) -> AbstractContextManager:
    """Sets the mesh, where there is one: all that is computed under it is computed by all devices."""
    return nullcontext() if mesh is None else jax.set_mesh(mesh)


def on_cpu() -> AbstractContextManager:
    """What lies on no mesh is computed by the CPU, in the host's memory, where JAX was left its CPU."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS names the accelerator alone
        return nullcontext()


def _kept_leaf(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf_to_host(leaf)
    return jax.device_put(leaf, leaf.sharding.with_memory_kind("pinned_host"))


def _like_leaf(placed: jax.Array, leaf: Any) -> jax.Array:
    return jax.device_put(leaf, placed.sharding) if placed.committed else jnp.array(leaf)


def _on_first(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    if leaf.ndim < 3:
        return _where_first(gather(leaf))
    # All layers may be more than a device holds.
    layers = [_where_first(gather(leaf[layer])) for layer in range(len(leaf))]
    return np.stack(layers) if is_first() else None


def _where_first(leaf: jax.Array) -> Any:
    return np.asarray(leaf) if is_first() else None


def _put(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda leaf, sharding: _put_leaf(leaf, sharding), tree, shardings)


def _put_leaf(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(leaf, jax.Array) and (not leaf.is_fully_addressable or sharding.is_fully_addressable):
        return jax.device_put(leaf, sharding)
    value = np.asarray(leaf)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def _under(mesh: Mesh, function: Any) -> Callable:
    """The jitted function with the mesh set while it runs or is lowered, and then alone: all that is computed under it
    is on all devices.
    """

    @functools.wraps(function)
    def on_mesh(*arguments: Any) -> Any:
        with set_mesh(mesh):
            return function(*arguments)

    def lower(*arguments: Any) -> Any:
        with set_mesh(mesh):
            return function.lower(*arguments)

    on_mesh.lower = lower  # type: ignore[attr-defined]
    return on_mesh
