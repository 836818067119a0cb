"""Functions that use linear maps of their weights: scaled, masked, joined, padded, copied, in ragged groups."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from tests.support.functions.cases import TOKENS, Case, X, function, normal, weight
from tests.support.functions.flax_modules import linen

GAINS = 1 + 0.3 * normal(30, 5)


@function
def scaled_weights() -> Case:
    def fn(base: Any, x: Any) -> Any:
        gains, mask = GAINS.astype(x.dtype), jnp.arange(5) % 3 > 0
        hidden = jnp.tanh(x @ (base["halved"] / 2) - x @ -(2 * base["negated"]))
        hidden = hidden @ (base["by_column"] * gains[None]) + hidden @ (base["by_row"] / (gains * gains)[:, None])
        return hidden @ jnp.where(mask[:, None], base["masked"], 0) @ (base["gained"] * base["scale"][None])

    base = {name: weight(i, 6, 5) for i, name in enumerate(("halved", "negated"))}
    base |= {name: weight(i, 5, 5) for i, name in enumerate(("by_column", "by_row", "masked", "gained"), 2)}
    return Case(fn, base | {"scale": GAINS}, (X,))


@function
def joined_weights() -> Case:
    def fn(base: Any, x: Any) -> Any:
        joined = jnp.tanh(x @ jnp.concatenate([base["query"], base["key"], base["value"]], axis=1))
        query, key, value = jnp.split(joined, [4, 8], axis=1)
        mixed = jnp.einsum("bi,eio->beo", query + key, jnp.stack([base["first"], base["second"]]))
        return mixed @ jnp.roll(base["rolled"], 1, axis=1) + value[:, None, :4]

    base = {name: weight(i, 6, 4) for i, name in enumerate(("query", "key", "value"))}
    base |= {name: weight(i, 4, 4) for i, name in enumerate(("first", "second", "rolled"), 3)}
    return Case(fn, base, (X,))


@function
def padded_and_copied_weights() -> Case:
    def fn(base: Any, x: Any) -> Any:
        wide = jnp.pad(x, ((0, 0), (1, 1))) @ jnp.pad(base["padded"], ((1, 1), (0, 2)))
        keys = jnp.einsum("bi,ihk->bhk", wide, jnp.repeat(base["heads"], 2, axis=1))
        return keys.reshape(3, 12) @ jnp.tile(base["tiled"], (2, 3))

    return Case(fn, {"padded": weight(1, 6, 4), "heads": weight(2, 6, 2, 3), "tiled": weight(3, 6, 2)}, (X,))


@function
def experts_in_ragged_groups() -> Case:
    def fn(base: Any, x: Any, sizes: Any) -> Any:
        return lax.ragged_dot(jnp.tanh(lax.ragged_dot(x, base["up"], sizes)), base["down"], sizes)

    base = {"up": weight(1, 3, 8, 6), "down": weight(2, 3, 6, 5)}
    return Case(fn, base, (TOKENS.reshape(10, 8), jnp.array([4, 1, 5])))


@function
def linen_optimized_lstm() -> Case:
    return linen(nn.RNN(nn.OptimizedLSTMCell(6)), TOKENS)
