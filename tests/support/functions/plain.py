"""Functions of plain JAX: products, loops, branches, derivatives of their own, shards."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from tests.support.functions.cases import IDS, PIXELS, TOKENS, Case, X, function, normal, weight


@function
def several_products() -> Case:
    def fn(base, x):
        hidden = jnp.tanh(x @ base["up"]) + x @ base["up"] * 2
        return jnp.einsum("bh,hkd->bkd", hidden, base["down"])

    return Case(fn, {"up": weight(1, 6, 8), "down": weight(2, 8, 2, 3)}, (X,))


@function
def nested_jit_and_checkpoint() -> Case:
    @jax.jit
    def layer(w, x):
        return jax.checkpoint(lambda w, x: jnp.tanh(x @ w.T))(w, x)

    def fn(base, x):
        return layer(base["second"], jax.jit(jax.jit(layer))(base["first"], x))

    return Case(fn, {"first": weight(1, 7, 6), "second": weight(2, 5, 7)}, (X,))


@function
def scan_over_layers() -> Case:
    def fn(base, x):
        def layer(x, weights):
            return jnp.tanh(x @ weights["w"] + weights["bias"][None]), x.mean()

        x, means = lax.scan(layer, x, base, reverse=True, unroll=2)
        return x * means.sum()

    return Case(fn, {"w": weight(1, 3, 6, 6), "bias": normal(2, 3, 6)}, (X,))


@function
def scan_with_a_shared_weight() -> Case:
    def fn(base, x):
        return lax.scan(lambda state, row: (jnp.tanh(row @ base["in"] + state @ base["state"]),) * 2, x[0, :5], x)[1]

    return Case(fn, {"in": weight(1, 6, 5), "state": weight(2, 5, 5)}, (X,))


@function
def scan_of_scan() -> Case:
    def fn(base, x):
        def outer(x, weights):
            return lax.scan(lambda x, w: (x + jnp.sin(x @ w), None), x, weights)[0], None

        return lax.scan(outer, x, base["w"])[0]

    return Case(fn, {"w": weight(1, 2, 2, 6, 6)}, (X,))


@function
def while_loop() -> Case:
    def fn(base, x):
        def unfinished(state):
            count, x = state
            return (count < 3) & (jnp.abs(x @ base["test"]).max() > 0)

        return lax.while_loop(unfinished, lambda s: (s[0] + 1, jnp.tanh(s[1] @ base["step"])), (0, x))[1]

    base = {"test": weight(1, 6, 2), "step": 0.7 * weight(2, 6, 6)}
    return Case(fn, base, (X,), differentiable=False)


def _branches(base: Any, x: jax.Array) -> jax.Array:
    x = lax.cond(x.sum() > 0, lambda x: x @ base["left"], lambda x: jnp.sin(x @ base["right"]), x)
    return lax.switch(2, [lambda x: x, jnp.tanh, lambda x: x @ base["last"]], x)


@function
def cond_and_switch() -> Case:
    def fn(base, x):
        return jnp.stack([_branches(base, x), _branches(base, -x)])

    return Case(fn, {name: weight(i, 6, 6) for i, name in enumerate(["left", "right", "last"])}, (X,))


@function
def fori_loop_over_layers() -> Case:
    def fn(base, x):
        return lax.fori_loop(0, 3, lambda i, x: jnp.tanh(x @ base["w"][i]), x)

    return Case(fn, {"w": weight(1, 3, 6, 6)}, (X,))


@function
def loop_that_picks_layers() -> Case:
    def fn(base, x, order):
        def layer(x, i):
            return jnp.tanh(x @ lax.dynamic_index_in_dim(base["w"], i, axis=0, keepdims=False)), None

        return lax.scan(layer, x, order)[0]

    return Case(fn, {"w": weight(1, 3, 6, 6)}, (X, jnp.array([2, 0, 2, 1])))


@function
def custom_derivatives_beside() -> Case:
    def fn(base, x):
        return _squashed(_cubed(x @ base["up"]) + jax.nn.relu(jax.nn.silu(x))) @ base["down"]

    return Case(fn, {"up": weight(1, 6, 6), "down": weight(2, 6, 4)}, (X,))


@jax.custom_vjp
def _cubed(x):
    return x**3


_cubed.defvjp(lambda x: (x**3, x), lambda x, g: (3 * x**2 * g,))


@jax.custom_jvp
def _squashed(x):
    return x / (1 + jnp.abs(x))


@_squashed.defjvp
def _squashed_jvp(primals, tangents):
    return _squashed(primals[0]), tangents[0] / (1 + jnp.abs(primals[0])) ** 2


@function
def experts() -> Case:
    def fn(base, x):
        chosen = jax.nn.softmax(x @ base["router"])
        hidden = jax.vmap(lambda w: jnp.tanh(x @ w))(base["up"])
        return jnp.einsum("be,ebh,eho->bo", chosen, hidden, base["down"])

    return Case(fn, {"router": weight(1, 6, 3), "up": weight(2, 3, 6, 5), "down": weight(3, 3, 5, 4)}, (X,))


@function
def derivative_inside() -> Case:
    def fn(base, x):
        return jax.grad(lambda x: jnp.sum(jnp.tanh(x @ base["w"]) ** 2))(x)

    return Case(fn, {"w": weight(1, 6, 4)}, (X,))


@function
def mapped_and_weights_on_the_left() -> Case:
    def fn(base, x):
        hidden = lax.map(lambda row: jnp.tanh(base["first"] @ row), x)
        return jax.vmap(lambda row: base["second"] @ row, out_axes=1)(hidden)

    return Case(fn, {"first": weight(1, 5, 6).T.T, "second": weight(2, 4, 5)}, (X,))


@function
def fused_projections() -> Case:
    def fn(base, x):
        query, key, value = jnp.split(x @ base["qkv"], 3, axis=-1)
        halves = base["out"].reshape(2, 4, 8)
        mixed = jax.nn.softmax(query @ key.mT) @ value
        return jnp.einsum("bthd,hdo->bto", mixed.reshape(2, 5, 2, 4), halves)

    return Case(fn, {"qkv": weight(1, 8, 24), "out": weight(2, 8, 8)}, (TOKENS,))


@function
def tied_embedding() -> Case:
    def fn(base, ids):
        return jnp.tanh(jnp.take(base["table"], ids, axis=0) @ base["w"]) @ base["table"].T

    return Case(fn, {"table": normal(1, 9, 8), "w": weight(2, 8, 8)}, (IDS,), {"ensure_weight_tying": True})


@function
def plain_convolutions() -> Case:
    def fn(base, x):
        numbers = ("NCHW", "OIHW", "NCHW")
        x = jnp.transpose(x, (0, 3, 1, 2))
        x = jnp.tanh(lax.conv_general_dilated(x, base["first"], (1, 1), "SAME", dimension_numbers=numbers))
        return lax.conv_general_dilated(
            x, base["second"], (2, 1), [(1, 0), (0, 2)], rhs_dilation=(1, 2), dimension_numbers=numbers
        )

    return Case(fn, {"first": 0.2 * normal(1, 5, 4, 3, 3), "second": 0.2 * normal(2, 3, 5, 2, 2)}, (PIXELS,))


@function
def shard_map() -> Case:
    mesh, split, whole = Mesh(np.array(jax.devices()[:1]), ("x",)), PartitionSpec("x"), PartitionSpec()

    def fn(base, x):
        def shard(w, x):
            return lax.psum(jnp.tanh(x @ w), "x") / lax.psum(1.0, "x")

        hidden = jax.shard_map(shard, mesh=mesh, in_specs=(whole, split), out_specs=whole)(base["first"], x)
        return jax.shard_map(lambda w, x: x @ w, mesh=mesh, in_specs=(whole, split), out_specs=split)(
            base["second"], hidden
        )

    return Case(fn, {"first": weight(1, 6, 5), "second": weight(2, 5, 4)}, (X,))


@function
def scan_of_remat_of_attention() -> Case:
    """A small transformer: embedding, a convolution over it, layers of attention and MLP, a head."""

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    def layer(x, weights):
        query, key, value = (jnp.einsum("btd,dhk->bthk", x, weights[name]) for name in "qkv")
        mixed = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", query, key), -1)
        x = x + jnp.einsum("bhts,bshk,hkd->btd", mixed, value, weights["out"])
        return x + jax.nn.gelu(x @ weights["up"]) @ weights["down"], None

    def fn(base, ids):
        x = base["table"][ids]
        x = lax.conv_general_dilated(x, base["conv"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
        return jax.jit(lambda layers, x: lax.scan(layer, x, layers)[0])(base["layers"], x) @ base["head"]

    layers = {name: 0.2 * normal(i, 2, 8, 2, 4) for i, name in enumerate("qkv")}
    layers |= {"out": 0.2 * normal(4, 2, 2, 4, 8), "up": 0.2 * normal(5, 2, 8, 12), "down": 0.2 * normal(6, 2, 12, 8)}
    base = {"table": normal(7, 9, 8), "conv": 0.3 * normal(8, 3, 8, 8), "layers": layers, "head": weight(9, 8, 3)}
    return Case(fn, base, (IDS,))
