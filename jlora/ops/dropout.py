"""Inverted dropout whose mask is a hash of each element's position: a few integer operations, no stored mask."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp


def dropout(key: jax.Array, x: jax.Array, rate: float) -> jax.Array:
    """Zeroes each element of `x` with probability `rate` and scales the rest by 1 / (1 - rate).

    The mask depends only on `key` and the element's position. The backward pass computes it again instead of keeping
    it.

    Args:
      key: one JAX random key, of any generator.
      x: floating point array of any shape with fewer than 2**32 elements.
      rate: probability in [0, 1); 0 returns `x` itself.

    Returns:
      An array of the shape and dtype of `x`.

    Raises:
      ValueError: `rate` outside [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"dropout rate: expected a number in [0, 1), found {rate}")
    if rate == 0.0:
        return x
    return _dropout(hash_words(key), x, rate)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _dropout(words: jax.Array, x: jax.Array, rate: float) -> jax.Array:
    return _apply_mask(words, x, rate)


@_dropout.defjvp
def _dropout_jvp(rate: float, primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    words, x = primals
    # The checkpoint keeps no mask: the backward pass hashes the positions again.
    tangent = jax.checkpoint(_apply_mask, prevent_cse=False, static_argnums=(2,))(words, tangents[1], rate)
    return _apply_mask(words, x, rate), tangent


def _apply_mask(words: jax.Array, x: jax.Array, rate: float) -> jax.Array:
    keep = is_kept(words, jax.lax.iota(jnp.uint32, math.prod(x.shape)).reshape(x.shape), rate)
    return jnp.where(keep, x * jnp.asarray(1.0 / (1.0 - rate), x.dtype), jnp.zeros((), x.dtype))


def hash_words(key: jax.Array) -> jax.Array:
    """Draws the words, uint32 (2,), that `is_kept` takes, from a key of any of JAX's generators."""
    return jax.random.bits(key, (2,), jnp.uint32)


def is_kept(words: jax.Array, positions: jax.Array, rate: float) -> jax.Array:
    """Returns whether dropout at `rate` keeps the elements at these positions (uint32, in the flattened array).

    It keeps those where `hash_bits(words, positions)` is at least round(rate * 2**32); a rate of 0 keeps all. `words`
    is `hash_words(key)`, uint32 (2,). The result is bool, of the shape of `positions`.
    """
    return hash_bits(words, positions) >= jnp.uint32(round(rate * 2**32))


def hash_bits(words: jax.Array, positions: jax.Array) -> jax.Array:
    """Hashes each position to a uniform uint32: C. Wellons's "lowbias32" mixer, with a key word before each round.

    `words` is uint32 (2,), such as `hash_words(key)`; `positions` are uint32 of any shape, which the result has too. A
    hash depends only on `words` and its own position.
    """
    bits = _mix(positions ^ words[0], 16, 0x7FEB352D)
    bits = _mix(bits ^ words[1], 15, 0x846CA68B)
    return bits ^ (bits >> jnp.uint32(16))


def _mix(bits: jax.Array, shift: int, factor: int) -> jax.Array:
    return (bits ^ (bits >> jnp.uint32(shift))) * jnp.uint32(factor)
