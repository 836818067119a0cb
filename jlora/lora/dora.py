"""DoRA's norm and gain (Liu et al. 2024): a weight V = W + s B A becomes magnitude * V / |V|, the norm detached."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jlora.lora.entries import LowRank, scale_b
from jlora.sharding.explicit_axes import axis_names, split_einsum, split_like
from jlora.tree.quantized import Quantized, as_array

_EXACT = jax.lax.Precision.HIGHEST


def squared_norm(low_rank: LowRank, leaf: jax.Array | Quantized) -> jax.Array:
    """Computes |leaf|^2 over the input axes of `low_rank.spec`: (*stack, *out), float32. A and B are not read."""
    axes = low_rank.axes

    def squares(leaf: jax.Array, stack: str, out: str) -> jax.Array:
        return jnp.einsum(f"{out}->{stack}{axes.outputs}", leaf * leaf)

    return _by_layer(squares, axes.stack, axes.leaf, leaf)


def with_magnitude(low_rank: LowRank, leaf: jax.Array | Quantized) -> LowRank:
    """Returns the entry with DoRA's magnitude, the norm of leaf + update over the input axes, and with `squared_norm`.

    With this magnitude the gain is 1: the weight does not change yet.
    """
    norms = squared_norm(low_rank, leaf)
    entry = dataclasses.replace(low_rank, squared_norm=norms, magnitude=jnp.ones_like(norms))
    moved = _change_of_squared_norm(entry, leaf)
    return dataclasses.replace(entry, magnitude=jnp.sqrt(split_like(norms, moved) + moved))


def gain(low_rank: LowRank, leaf: jax.Array | Quantized) -> jax.Array:
    """Computes magnitude / |leaf + update|, (*stack, *out), float32; 1 for layers that are not adapted and norms of 0.

    The entry must have a magnitude, and |leaf|^2 is its `squared_norm`. The norm is computed from
    |W|^2 + 2 <W, U> + |U|^2 without forming the update U, and has no gradient.
    """
    assert low_rank.magnitude is not None
    assert low_rank.squared_norm is not None
    # The optimization barrier keeps XLA from multiplying by a reciprocal root: a fresh gain would not be exactly 1.
    moved = _change_of_squared_norm(low_rank, leaf)
    squares = jnp.maximum(split_like(low_rank.squared_norm, moved) + moved, 0.0)  # a sum near 0 may be rounded below it
    norms = jax.lax.stop_gradient(jax.lax.optimization_barrier(jnp.sqrt(squares)))
    adapted = jnp.any(low_rank.scale != 0, axis=-1)
    adapted = jnp.expand_dims(adapted, tuple(range(adapted.ndim, norms.ndim)))
    used = adapted & (norms > 0)
    return jnp.where(used, split_like(low_rank.magnitude, norms) / jnp.where(used, norms, 1.0), jnp.ones_like(norms))


def _change_of_squared_norm(low_rank: LowRank, leaf: jax.Array | Quantized) -> jax.Array:
    """Computes 2 <W, U> + |U|^2 over the input axes: (*stack, *out)."""
    axes = low_rank.axes
    stack, inputs, outputs = axes.stack, axes.inputs, axes.outputs
    a, b = (jax.lax.stop_gradient(x.astype(jnp.float32)) for x in (low_rank.a, scale_b(low_rank)))

    def on_weight(w: jax.Array, stack: str, out: str, a: jax.Array) -> jax.Array:
        names = dict(zip(out, axis_names(w), strict=True))
        return split_einsum(f"{out},{stack}r{inputs}->{stack}r{outputs}", (w, a), names, precision=_EXACT)

    wa = _by_layer(on_weight, stack, axes.leaf, leaf, a)
    gram = jnp.einsum(f"{stack}r{inputs},{stack}z{inputs}->{stack}rz", a, a, precision=_EXACT)
    ab = jnp.einsum(f"{stack}rz,{stack}z{outputs}->{stack}r{outputs}", gram, b, precision=_EXACT)
    ab, b = (split_like(x, wa) for x in (ab, b))
    return jnp.einsum(f"{stack}r{outputs},{stack}r{outputs}->{stack}{outputs}", 2 * wa + ab, b, precision=_EXACT)


def _by_layer(fn: Callable, stack: str, out: str, leaf: jax.Array | Quantized, *others: jax.Array) -> jax.Array:
    """Calls fn(leaf as float32, stack, out, *others) layer by layer.

    Only one layer of a stack is dequantized, and on a mesh gathered, at a time.

    Args:
      stack, out: the letters of the stack's axes and of the leaf's axes; `fn` gets those without the layers' axes.
      others: arrays whose leading axes are also the stack.
    """
    if stack and out[0] == stack[0] and (not isinstance(leaf, Quantized) or leaf.stack):
        return jax.lax.map(lambda layer: _by_layer(fn, stack[1:], out[1:], *layer), (leaf, *others))
    return fn(jax.lax.stop_gradient(as_array(leaf).astype(jnp.float32)), stack, out, *others)
