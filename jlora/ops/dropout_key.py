"""Dropout keys whose split, fold_in and bits are hashes of a few integer operations, instead of Threefry's loops.

A layer folds and splits its key about ten times. On a CPU, each of JAX's Threefry hashes compiles to a loop: in a BERT
training step with dropout, 63 of these loops took a fifth of the compile time.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.extend.random import define_prng_impl

from jlora.ops.dropout import hash_bits, hash_words

_FOLD, _SPLIT = 0x9E3779B9, 0x85EBCA6B
"""Constants that make a key's children by fold_in, its children by split and its bits differ from each other."""


def hash_key(key: jax.Array) -> jax.Array:
    """Converts a JAX key of any generator to one that is cheap to split and to fold.

    All functions of `jax.random` take it. Equal keys give equal results, also inside `jax.jit`.
    It is good enough for dropout, but not for cryptography or for numbers that must pass tests of randomness.
    """
    return jax.random.wrap_key_data(hash_words(key), impl=_IMPLEMENTATION)


def _seed(seed: jax.Array) -> jax.Array:
    return _children(jnp.array([_FOLD, _SPLIT], jnp.uint32), seed.astype(jnp.uint32))


def _split(words: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return _children(words ^ jnp.uint32(_SPLIT), _positions(shape))


def _fold_in(words: jax.Array, data: jax.Array | int) -> jax.Array:
    return _children(words ^ jnp.uint32(_FOLD), jnp.asarray(data, jnp.uint32))


def _bits(words: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    dtype = jnp.dtype(f"uint{bit_width}")
    low = hash_bits(words, _positions(shape))
    if bit_width <= 32:
        return low.astype(dtype)
    return low.astype(dtype) << dtype.type(32) | hash_bits(words[::-1], _positions(shape)).astype(dtype)


def _children(words: jax.Array, data: jax.Array) -> jax.Array:
    """Returns uint32 (*data.shape, 2): the two words of the child key for each number in `data`."""
    return jnp.stack([hash_bits(words, data), hash_bits(words[::-1], data)], axis=-1)


def _positions(shape: tuple[int, ...]) -> jax.Array:
    return jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)


_IMPLEMENTATION = define_prng_impl(
    key_shape=(2,), seed=_seed, split=_split, random_bits=_bits, fold_in=_fold_in, name="jlora_hash", tag="jlora"
)
