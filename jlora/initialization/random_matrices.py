"""Draws fresh A and B that do not depend on the weights, as PEFT does."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jlora.errors import JloraError
from jlora.lora.entries import LowRank
from jlora.lora.matrices import Matrices, from_matrices, layer_ranks


def draw_factors(key: jax.Array, entry: LowRank, init_lora_weights: bool | str | Callable[..., Any]) -> LowRank:
    """Draws float32 A and B for an entry, as `LoraConfig.init_lora_weights` says.

    True: A Kaiming uniform, within 1 / sqrt(inputs), as torch draws its Linear and Conv; B zero.
    "gaussian": A normal with standard deviation 1 / r, r each layer's own; B zero.
    "orthogonal": A = (G Q_even)^T / 10 and B = H Q_odd / 10 for normal G and H and the even and odd rows of one
    orthogonal Q (r, r): neither is zero and B A is. Ranks must be even.
    A function (key, shape, dtype) -> array: draws each layer's A as a matrix (inputs, r), transposed; B zero.
    False: A as for True and B uniform within 1 / sqrt(r), so that the adapter's update does not start at zero.

    An embedding table always has A zero and B normal, except that both are normal with False, as in PEFT. Components
    beyond a layer's true rank may hold any numbers, because their scale is 0.

    Args:
      key: a key that no other entry uses.
      entry: a and b may be ShapeDtypeStructs.

    Raises:
      JloraError: "orthogonal" with an odd rank.
    """
    a_key, b_key = jax.random.split(key)
    if entry.kind != "lookup" and init_lora_weights == "orthogonal":
        return _layer_by_layer(key, entry, _orthogonal)
    if entry.kind != "lookup" and callable(init_lora_weights):
        return _layer_by_layer(a_key, entry, _from_initializer(init_lora_weights))
    zero_b = init_lora_weights is not False
    if entry.kind == "lookup":
        a = jnp.zeros(entry.a.shape, jnp.float32) if zero_b else _normal(a_key, entry.a.shape)
        return dataclasses.replace(entry, a=a, b=_normal(b_key, entry.b.shape))
    if init_lora_weights == "gaussian":
        a = _normal(a_key, entry.a.shape) / _of_layers(entry, entry.a.ndim)
    else:
        a = _uniform(a_key, entry.a.shape, math.prod(entry.a.shape[entry.scale.ndim :]))
    b_shape = entry.b.shape
    b = jnp.zeros(b_shape, jnp.float32) if zero_b else _uniform(b_key, b_shape, _of_layers(entry, entry.b.ndim))
    return dataclasses.replace(entry, a=a, b=b)


def _normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(key, shape, jnp.float32)


def _uniform(key: jax.Array, shape: tuple[int, ...], fan_in: int | np.ndarray) -> jax.Array:
    """Draws torch's default for Linear and Conv weights: Kaiming uniform with a = sqrt(5) (He et al. 2015)."""
    bound = (1 / np.sqrt(fan_in, dtype=np.float64)).astype(np.float32)
    return jax.random.uniform(key, shape, jnp.float32, minval=-bound, maxval=bound)


def _of_layers(entry: LowRank, ndim: int) -> np.ndarray:
    """Returns each layer's true rank, float32 (*stack, 1, ...) of `ndim` axes; 1 for a layer that is not adapted."""
    stack = entry.scale.shape[:-1]
    return np.maximum(layer_ranks(entry), 1).astype(np.float32).reshape(*stack, *[1] * (ndim - len(stack)))


Draw = Callable[[jax.Array, int, int, int], tuple[jax.Array, jax.Array]]
"""(key, inputs, outputs, rank) -> (a (rank, inputs), b (outputs, rank))."""


def _layer_by_layer(key: jax.Array, entry: LowRank, draw: Draw) -> LowRank:
    """Draws each layer separately, with its true rank; padding is zero."""
    ranks, rank_axis = layer_ranks(entry), entry.scale.ndim - 1
    inputs, outputs = (math.prod(factor.shape[rank_axis + 1 :]) for factor in (entry.a, entry.b))
    scales = entry.scale.reshape(len(ranks), -1)
    keys = jax.random.split(key, len(ranks))
    layers = [
        Matrices(*draw(keys[layer], inputs, outputs, rank), scales[layer, :rank]) for layer, rank in enumerate(ranks)
    ]
    return from_matrices(entry, layers)


def _orthogonal(key: jax.Array, inputs: int, outputs: int, rank: int) -> tuple[jax.Array, jax.Array]:
    if rank % 2:
        raise JloraError(
            f'LoraConfig.init_lora_weights: expected even ranks with "orthogonal", found {rank}; r and rank_pattern set'
            " them"
        )
    q_key, a_key, b_key = jax.random.split(key, 3)
    q, _ = jnp.linalg.qr(_normal(q_key, (rank, rank)))
    a = jnp.matmul(_normal(a_key, (inputs, rank // 2)), q[0::2], precision=jax.lax.Precision.HIGHEST)
    b = jnp.matmul(_normal(b_key, (outputs, rank // 2)), q[1::2], precision=jax.lax.Precision.HIGHEST)
    return a.T / 10, b / 10


def _from_initializer(function: Callable[..., Any]) -> Draw:
    """Draws A with a `jax.nn.initializers` function, as a matrix (inputs, rank) so that its fan-in is A's."""

    def draw(key: jax.Array, inputs: int, outputs: int, rank: int) -> tuple[jax.Array, jax.Array]:
        a = function(key, (inputs, rank), jnp.float32) if rank else jnp.zeros((inputs, 0), jnp.float32)
        return a.T, jnp.zeros((outputs, rank), jnp.float32)

    return draw
