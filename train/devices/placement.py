"""Makes a run's mesh of devices, places weights, adapter and batches on it, and gathers arrays from it.

On a single device there is no mesh, and the functions return their arguments unchanged.
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
from jlora.sharding.base_shardings import base_shardings
from jlora.sharding.mesh import BATCH, make_mesh, set_mesh
from jlora.sharding.to_host import gather, leaf_to_host, placed_mesh, to_host
from train.config.run_config import RunConfig
from train.devices.compilation import jit
from train.devices.processes import is_first


def mesh_of(config: RunConfig, devices: Sequence[Any] | None = None) -> Mesh | None:
    """Makes the config's mesh of all devices (or of those given), with the axes data, fsdp and tensor.

    Returns None for a single device. Of the config `mesh` and `train.batch_size` are read.

    Raises:
      JloraError: the sizes do not fit the devices, or the batch is no multiple of data x fsdp.
    """
    asked = config.mesh
    mesh = make_mesh(asked.data, asked.fsdp, asked.tensor, devices)
    if mesh.size == 1:
        return None
    require_shared(config.train.batch_size, mesh.shape)
    return mesh


def require_shared(rows: int, sizes: Mapping[str, int]) -> None:
    """Raises JloraError if `rows` is no multiple of data x fsdp, the parts of a batch.

    Args:
      sizes: {mesh axis: its size}, with at least the axes data and fsdp.
    """
    parts = math.prod(sizes[name] for name in BATCH[0])
    if rows % parts:
        named = ", ".join(f"mesh.{name} {size}" for name, size in sizes.items())
        raise JloraError(
            f"train.batch_size: expected a multiple of {parts}, the parts of a batch on"
            f" {math.prod(sizes.values())} devices ({named}); found {rows}"
        )


def row_parts(mesh: Mesh | None) -> int:
    """Returns the number of parts into which a batch's rows are split: the product of the mesh's axes data and fsdp.

    1 without a mesh.
    """
    return 1 if mesh is None else math.prod(mesh.shape[name] for name in BATCH[0])


def round_up(mesh: Mesh | None, rows: int) -> int:
    """Rounds the rows of an evaluation batch up to a multiple of data x fsdp; without a mesh they stay."""
    parts = row_parts(mesh)
    return -(-rows // parts) * parts


def put_adapted(mesh: Mesh | None, adapted: Adapted, config: RunConfig) -> Adapted:
    """Puts base and adapter on the mesh: the base as `base_shardings` says, the adapter as `put_adapter` does.

    `initial`, the adapter before training, is copied to the host. Without a mesh `adapted` is returned unchanged. Of
    the config `method` and `mesh.adapters` are read.
    """
    if mesh is None:
        return adapted
    return dataclasses.replace(
        adapted,
        base=_put(adapted.base, base_shardings(adapted.base, mesh)),
        adapter=put_adapter(mesh, adapted.adapter, config),
        initial=to_host(adapted.initial),
    )


def put_adapter(mesh: Mesh | None, adapter: dict[str, Any], config: RunConfig) -> dict[str, Any]:
    """Puts the adapter, {path: entry}, on the mesh, or on the device if there is no mesh.

    With `config.mesh.adapters` "replicated" each device gets all of it, with "inherit" its arrays are split like the
    weights that they adapt. For methods other than lora the entries are split like the base's weights.
    """
    if mesh is None:
        return jax.device_put(adapter)
    mode = config.mesh.adapters if config.method == "lora" else "inherit"
    return _put(adapter, adapter_shardings(adapter, mesh, mode))


def put_rest(mesh: Mesh | None, tree: Any) -> Any:
    """Replicates those arrays of the tree that are not on the mesh yet on each of its devices.

    The others keep their sharding. Without a mesh the tree is returned unchanged.
    """
    if mesh is None:
        return tree
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: leaf if placed_mesh(leaf) == mesh else _put(leaf, whole), tree)


def put_batch(mesh: Mesh | None, size: int, make: Callable[[np.ndarray], Any]) -> Any:
    """Puts a batch of `size` rows on the mesh; each process makes only the rows of its own devices.

    Args:
      size: a multiple of `row_parts(mesh)`.
      make: make(places) returns a tree of numpy arrays (len(places), ...), the rows at these places of the batch
        (int64, ascending). Without a mesh, the result of make(all places) is returned unchanged.

    Returns:
      The same tree of jax.Arrays (size, ...), rows split over the mesh's axes data and fsdp.
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
    """Makes a jitted train step (`train.loop.step`) for a mesh; its state keeps the shardings of `state`.

    Args:
      step: a result of `make_train_step`, returned unchanged if there is no mesh; else its function is jitted anew.
      state: the State before the first step, on the mesh.
    """
    if mesh is None:
        return step
    kept = jax.tree.map(lambda leaf: leaf.sharding, state)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return _under(mesh, jit(step.__wrapped__, donate_argnums=0, out_shardings=(kept, everywhere)))


def eval_step_on(mesh: Mesh | None, step: Any) -> Callable:
    """Makes a jitted evaluation step for a mesh; its results are replicated on each device.

    `step` is a jitted function, returned unchanged if there is no mesh; else the function in it is jitted anew.
    """
    return (
        step
        if mesh is None
        else _under(mesh, jit(step.__wrapped__, out_shardings=NamedSharding(mesh, PartitionSpec())))
    )


def copy_to_host(tree: Any) -> Any:
    """Copies all arrays to host memory, so that the originals can be donated.

    The copies are numpy arrays. If several processes share an array, each copies its own shards to a jax.Array.
    """
    return jax.tree.map(_copy_leaf_to_host, tree)


def put_like(placed: Any, tree: Any) -> Any:
    """Copies the arrays of a tree that `copy_to_host` returned to the devices of those of `placed`.

    Both trees have one structure. Arrays take the shardings of `placed`; uncommitted ones go to the default device.
    """
    return jax.tree.map(
        lambda x, leaf: jax.device_put(leaf, x.sharding) if x.committed else jnp.array(leaf), placed, tree
    )


def to_first(tree: Any) -> Any:
    """Gathers all arrays, layer by layer, for the process that writes.

    All processes must call it. Arrays that no other process shares are returned as they are; of the shared ones, the
    first process gets numpy arrays and the others None for each.
    """
    return jax.tree.map(_on_first, tree)


def on_cpu() -> AbstractContextManager:
    """Makes the CPU compute, in host memory, what is not on a mesh, if JAX may use the CPU."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:  # JAX_PLATFORMS names only the accelerator
        return nullcontext()


def _copy_leaf_to_host(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf_to_host(leaf)
    return jax.device_put(leaf, leaf.sharding.with_memory_kind("pinned_host"))


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
    """Runs and lowers the jitted function with the mesh set.

    The mesh is set only for these calls, because everything computed under it is replicated on all its devices.
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
