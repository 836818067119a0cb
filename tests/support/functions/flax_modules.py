"""Modules of Flax, linen and NNX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from tests.support.functions.cases import IDS, PIXELS, SIGNAL, TOKENS, Case, X, function, randomly, relaxed

# Flax linen


def linen(module: nn.Module, *args: Any, fields: dict[str, Any] | None = None) -> Case:
    """The module's `apply` on random parameters."""
    shapes = jax.eval_shape(lambda *args: relaxed(module.init)(jax.random.key(0), *args), *args)
    return Case(relaxed(module.apply), randomly(shapes), args, fields or {})


class Chain(nn.Module):
    """The modules one after the other, tanh between them."""

    parts: tuple[nn.Module, ...]

    @nn.compact
    def __call__(self, x):
        for part in self.parts[:-1]:
            x = jnp.tanh(part(x))
        return self.parts[-1](x)


@function
def linen_dense() -> Case:
    general = nn.DenseGeneral((2, 4))
    return linen(Chain((nn.Dense(8), general, nn.DenseGeneral(5, axis=(-2, -1)))), TOKENS)


@function
def linen_einsum() -> Case:
    return linen(Chain((nn.Einsum((8, 2, 4), "btd,dhk->bthk"), nn.Einsum((2, 4, 6), "bthk,hkd->btd"))), TOKENS)


@function
def linen_attention() -> Case:
    return linen(nn.MultiHeadDotProductAttention(num_heads=2), TOKENS)


@function
def linen_conv_1d() -> Case:
    return linen(Chain((nn.Conv(6, (3,)), nn.Conv(5, (2,), strides=2, padding="VALID"))), SIGNAL)


@function
def linen_conv_2d() -> Case:
    return linen(Chain((nn.Conv(6, (3, 3)), nn.Conv(5, (3, 2), strides=(2, 1), kernel_dilation=(1, 2)))), PIXELS)


@function
def linen_conv_grouped() -> Case:
    return linen(Chain((nn.Conv(8, (3, 3), feature_group_count=2), nn.Conv(6, (1, 1)))), PIXELS)


@function
def linen_conv_depthwise() -> Case:
    return linen(Chain((nn.Conv(4, (3, 3), feature_group_count=4), nn.Conv(6, (1, 1)))), PIXELS)


@function
def linen_conv_transpose() -> Case:
    return linen(Chain((nn.ConvTranspose(6, (3, 3), strides=(2, 2)), nn.ConvTranspose(5, (2, 2)))), PIXELS)


@function
def linen_embed() -> Case:
    return linen(Chain((nn.Embed(9, 8), nn.Dense(4))), IDS)


@function
def linen_tied_embed() -> Case:
    class Tied(nn.Module):
        @nn.compact
        def __call__(self, ids):
            embed = nn.Embed(9, 8)
            return embed.attend(jnp.tanh(nn.Dense(8)(embed(ids))))

    return linen(Tied(), IDS, fields={"ensure_weight_tying": True})


class Block(nn.Module):
    """A transformer layer, as a scan step."""

    @nn.compact
    def __call__(self, x, _=None):
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        return x + nn.Dense(8)(nn.gelu(nn.Dense(12)(nn.LayerNorm()(x)))), None


@function
def linen_scan_of_remat() -> Case:
    class Stack(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.scan(nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=2)()(x)[0]

    return linen(Stack(), TOKENS)


@function
def linen_remat() -> Case:
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.remat(Block)()(x)[0]

    return linen(Outer(), TOKENS)


@function
def linen_vmap() -> Case:
    class Heads(nn.Module):
        @nn.compact
        def __call__(self, x):
            dense = nn.vmap(
                nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=3
            )
            return jnp.sin(dense(4)(x))

    return linen(Heads(), X)


@function
def linen_lstm() -> Case:
    return linen(nn.RNN(nn.LSTMCell(6)), TOKENS)


@function
def linen_gru() -> Case:
    return linen(nn.RNN(nn.GRUCell(6), reverse=True), TOKENS)


# Flax NNX


def of_nnx(module: Any, *args: Any) -> Case:
    """The module as split takes it apart, its parameters random."""
    graph, state = nnx.split(module)

    def fn(state, *args):
        return nnx.merge(graph, state)(*args)

    return Case(relaxed(fn), randomly(state), args)


@function
def nnx_linear() -> Case:
    return of_nnx(nnx.Linear(8, 6, rngs=nnx.Rngs(0)), TOKENS)


@function
def nnx_mlp() -> Case:
    class Mlp(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.Linear(8, 12, rngs=rngs)
            self.norm = nnx.LayerNorm(12, rngs=rngs)
            self.down = nnx.LinearGeneral(12, (2, 3), rngs=rngs)

        def __call__(self, x):
            return self.down(self.norm(nnx.gelu(self.up(x))))

    return of_nnx(Mlp(nnx.Rngs(0)), TOKENS)


@function
def nnx_attention() -> Case:
    return of_nnx(nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0)), TOKENS)


@function
def nnx_conv() -> Case:
    return of_nnx(nnx.Conv(4, 6, (3, 3), strides=2, rngs=nnx.Rngs(0)), PIXELS)


@function
def nnx_embed() -> Case:
    return of_nnx(nnx.Embed(9, 8, rngs=nnx.Rngs(0)), IDS)
