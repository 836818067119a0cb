"""Modules of Equinox, Haiku and Keras, each imported where a test asks for it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tests.support.functions.cases import IDS, PIXELS, TOKENS, Case, X, function, randomly, relaxed

# Equinox


def of_equinox(module: Any, call: Callable, *args: Any) -> Case:
    """`call(module, *args)`, the module's arrays random."""
    import equinox as eqx

    arrays, static = eqx.partition(module, eqx.is_inexact_array)
    return Case(relaxed(lambda arrays, *args: call(eqx.combine(arrays, static), *args)), randomly(arrays), args)


def rows(module: Any, *args: Any) -> Any:
    """The module on each row: Equinox's know no batch."""
    return jax.vmap(module)(*args)


@function
def equinox_linear() -> Case:
    import equinox as eqx

    return of_equinox(eqx.nn.Linear(6, 5, key=jax.random.key(0)), rows, X)


@function
def equinox_mlp() -> Case:
    import equinox as eqx

    return of_equinox(eqx.nn.MLP(6, 4, 7, 2, key=jax.random.key(0)), rows, X)


@function
def equinox_attention() -> Case:
    import equinox as eqx

    attention = eqx.nn.MultiheadAttention(2, 8, use_query_bias=True, key=jax.random.key(0))
    return of_equinox(attention, lambda module, x: jax.vmap(module)(x, x, x), TOKENS)


@function
def equinox_conv() -> Case:
    import equinox as eqx

    module = eqx.nn.Conv2d(4, 6, 3, stride=2, padding=1, key=jax.random.key(0))
    return of_equinox(module, rows, jnp.moveaxis(PIXELS, 3, 1))


@function
def equinox_gru() -> Case:
    import equinox as eqx

    def call(cell, x):
        return lax.scan(lambda state, row: (cell(row, state), state), jnp.zeros(5, x.dtype), x)[0]

    return of_equinox(eqx.nn.GRUCell(6, 5, key=jax.random.key(0)), call, X)


@function
def equinox_embedding() -> Case:
    import equinox as eqx

    return of_equinox(eqx.nn.Embedding(9, 8, key=jax.random.key(0)), lambda m, ids: jax.vmap(jax.vmap(m))(ids), IDS)


# Haiku


def haiku(call: Callable, *args: Any) -> Case:
    """The transformed function on random parameters."""
    import haiku as hk

    transformed = hk.without_apply_rng(hk.transform(call))
    shapes = jax.eval_shape(relaxed(transformed.init), jax.random.key(0), *args)
    return Case(relaxed(transformed.apply), randomly(shapes), args)


@function
def haiku_mlp() -> Case:
    import haiku as hk

    return haiku(lambda x: hk.nets.MLP([7, 4])(hk.Linear(6)(x)), X)


@function
def haiku_attention() -> Case:
    import haiku as hk

    def call(x):
        return hk.MultiHeadAttention(2, 4, w_init=hk.initializers.RandomNormal())(x, x, x)

    return haiku(call, TOKENS)


@function
def haiku_conv() -> Case:
    import haiku as hk

    return haiku(lambda x: hk.Conv2D(3, (2, 2))(jnp.tanh(hk.Conv2D(5, (3, 3), stride=2)(x))), PIXELS)


@function
def haiku_lstm() -> Case:
    import haiku as hk

    def call(ids):
        x = hk.Embed(9, 8)(ids)
        core = hk.LSTM(6)
        return hk.dynamic_unroll(core, x, core.initial_state(2), time_major=False)[0]

    return haiku(call, IDS)


# Keras


def keras_on_jax(layers: Callable[[Any], list], *args: Any) -> Case:
    """A Sequential of the layers through `stateless_call`; base is {a variable's path: its value}."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    os.environ.setdefault("KERAS_HOME", tempfile.mkdtemp())  # where it would write its settings
    import keras

    shape, dtype = args[0].shape[1:], args[0].dtype.name
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        model = keras.Sequential([keras.Input(shape, dtype=dtype), *layers(keras.layers)])
    paths = [variable.path for variable in model.trainable_variables]
    others = [variable.value for variable in model.non_trainable_variables]  # states of unused seed generators

    def fn(base, *args):
        return model.stateless_call([base[path] for path in paths], others, *args)[0]

    base = {path: variable.value for path, variable in zip(paths, model.trainable_variables, strict=True)}
    return Case(relaxed(fn), randomly(base), args)


@function
def keras_dense() -> Case:
    return keras_on_jax(lambda k: [k.Dense(7, "gelu"), k.LayerNormalization(), k.EinsumDense("bd,dhk->bhk", (2, 3))], X)


@function
def keras_conv() -> Case:
    return keras_on_jax(lambda k: [k.Conv2D(5, 3, activation="tanh"), k.Conv2D(3, 2, strides=2)], PIXELS)


@function
def keras_embedding_and_gru() -> Case:
    return keras_on_jax(lambda k: [k.Embedding(9, 8), k.GRU(5, return_sequences=True)], IDS)
