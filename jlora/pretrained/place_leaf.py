"""Loads one leaf of a model from the tensors of its file: casts, quantizes and places it on the device or mesh."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jlora.quantization.encode import quantize_leaf
from jlora.sharding.mesh import on_devices
from jlora.sharding.rules import leaf_shardings
from jlora.tree.module_names import is_stacked, is_transposed
from jlora.tree.output_heads import is_linear_weight
from jlora.tree.quantized import QuantizationKind


def load_leaf(path: str, tensors: list[Any], dtype: Any, quantize: QuantizationKind | None, mesh: Mesh | None) -> Any:
    """Loads one leaf from its tensor, or from the tensors of all layers, which are stacked on axis 0.

    Each layer is quantized before the next one is read, so that the dense stack is never in memory.

    Args:
      path: of the leaf; it says whether the leaf is a stack (`is_stacked`), and whether tensors are transposed (a
        kernel).
      tensors: as `open_tensors` opens them; one, or one for each layer, in order.
      dtype: of the leaf; that of the numbers if it is quantized.
      quantize: None, or "nf4" or "int8", which makes a Quantized of the weight of a linear layer (`is_linear_weight`).
      mesh: splits the leaf as `leaf_shardings` says; None puts it on the default device.

    Returns:
      A jax.Array, or a Quantized.

    Raises:
      FileError: a number is not finite, or `dtype` cannot hold it.
    """
    if not is_stacked(path):
        return _place_weight(path, tensors[0], dtype, quantize, mesh)
    stack = None
    for layer, tensor in enumerate(tensors):
        value = _place_weight(path, tensor, dtype, quantize, mesh)
        if stack is None:
            stack = jax.tree.map(partial(_zeros, len(tensors)), value)
        stack = jax.block_until_ready(_with_layer(stack, value, layer))
    return stack


def _zeros(count: int, layer: jax.Array) -> jax.Array:
    """Makes zeros (count, *layer.shape), sharded like `layer` and not split over the layers."""
    lies = layer.sharding
    stacked = NamedSharding(lies.mesh, PartitionSpec(None, *lies.spec)) if isinstance(lies, NamedSharding) else None
    return jnp.zeros((count, *layer.shape), layer.dtype, device=stacked)


def _place_weight(path: str, tensor: Any, dtype: Any, kind: QuantizationKind | None, mesh: Mesh | None) -> Any:
    """Places one checkpoint tensor on its device or mesh. A linear weight is quantized first.

    It is quantized as a whole, so that its scales do not depend on the mesh.
    """
    if kind is None or not is_linear_weight(path):
        return _put(path, tensor, dtype, mesh)
    return place_on_mesh(path, quantize_leaf(_put(path, tensor, dtype, None), kind), mesh)


def _put(path: str, tensor: Any, dtype: Any, mesh: Mesh | None) -> jax.Array:
    """Copies a tensor of a file to the device or the mesh, transposed if the leaf at `path` is."""
    turned = is_transposed(path)

    def part(index: tuple[slice, ...]) -> np.ndarray:
        value = tensor.read(dtype, index[::-1] if turned else index)
        return value.T if turned else value

    if mesh is None:
        return jax.device_put(part(()), may_alias=False).block_until_ready()
    layer = jax.ShapeDtypeStruct(tensor.shape[::-1] if turned else tensor.shape, dtype)
    return on_devices(layer.shape, leaf_shardings(path, layer, mesh), part).block_until_ready()


def place_on_mesh(path: str, leaf: Any, mesh: Mesh | None) -> Any:
    """Splits a leaf, or one of its layers, that is on this process's first device over the mesh.

    Args:
      path: the leaf's path in the base, such as "params/model/layers/mlp/up_proj/kernel".
      mesh: has the axes data, fsdp and tensor, as `jlora.make_mesh` makes it; with None the leaf is returned unchanged.

    Returns:
      The same values, with the shardings of `jlora.sharding.rules.leaf_shardings(path, leaf, mesh)`.
    """
    if mesh is None:
        return leaf
    shardings = leaf_shardings(path, leaf, mesh)
    return jax.tree.map(lambda x, sharding: on_devices(x.shape, sharding, lambda index: x[index]), leaf, shardings)


@partial(jax.jit, donate_argnums=0)
def _with_layer(stack: Any, value: Any, layer: int) -> Any:
    """Writes one layer into `stack`, whose arrays are (layers, ...), in place."""
    return jax.tree.map(lambda xs, x: jax.lax.dynamic_update_index_in_dim(xs, x, layer, 0), stack, value)
