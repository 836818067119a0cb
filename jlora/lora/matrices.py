"""Converts the layers of an entry to plain matrices, as PEFT stores them, for SVDs and files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jlora.lora.entries import LowRank


class Matrices(NamedTuple):
    """One layer of a LowRank entry without its padding; the update is (b * scale) @ a, (out, in).

    Attributes:
      a: (rank, in). b: (out, rank). scale: (rank,).
    """

    a: jax.Array
    b: jax.Array
    scale: jax.Array

    @property
    def update(self) -> jax.Array:
        """The update (b * scale) @ a: (out, in), float32."""
        a, b, scale = self.in_float32()
        return jnp.matmul(b * scale[None, :], a, precision=jax.lax.Precision.HIGHEST)

    def in_float32(self) -> Matrices:
        """Converts all three to float32, in which decompositions and mixtures are computed."""
        return Matrices(*(x.astype(jnp.float32) for x in self))


def to_matrices(entry: LowRank) -> list[Matrices]:
    """Returns the layers of the entry's stack in row-major order (one if there is no stack); ranks may be 0."""
    stack, width = entry.scale.shape[:-1], entry.scale.shape[-1]
    a, b, scale = (x.reshape(math.prod(stack), width, -1) for x in (entry.a, entry.b, entry.scale))
    ranks = layer_ranks(entry)
    return [Matrices(a[i, :rank], b[i, :rank].T, scale[i, :rank, 0]) for i, rank in enumerate(ranks)]


def layer_ranks(entry: LowRank) -> list[int]:
    """Returns the true rank of each matrix of the flattened stack.

    This is `entry.ranks`, each repeated if a stack inside the layers gives several matrices to each of them.
    """
    copies = math.prod(entry.scale.shape[:-1]) // len(entry.ranks)
    return [rank for rank in entry.ranks for _ in range(copies)]


def from_matrices(like: LowRank, layers: Sequence[Matrices]) -> LowRank:
    """Builds an entry from layers, padded to the largest of their ranks; the inverse of `to_matrices`.

    Args:
      like: the entry whose spec, dropout, kind, magnitude and axes of a and b are copied.
      layers: as many as `to_matrices(like)` returns; layers that share an entry of `ranks` have one rank.
    """
    stack = like.scale.shape[:-1]
    ranks = [layer.scale.shape[0] for layer in layers]
    width = max(1, *ranks)
    a = jnp.stack([_pad_rank(layer.a, width) for layer in layers])
    b = jnp.stack([_pad_rank(layer.b.T, width) for layer in layers])
    scale = jnp.stack([_pad_rank(layer.scale, width) for layer in layers])
    return dataclasses.replace(
        like,
        a=a.reshape(*stack, width, *like.a.shape[len(stack) + 1 :]),
        b=b.reshape(*stack, width, *like.b.shape[len(stack) + 1 :]),
        scale=scale.reshape(*stack, width),
        ranks=tuple(ranks[:: len(layers) // len(like.ranks)]),
    )


def _pad_rank(x: jax.Array, rank: int) -> jax.Array:
    return jnp.pad(x, [(0, rank - x.shape[0]), *[(0, 0)] * (x.ndim - 1)])


def leaf_to_matrices(like: LowRank, leaf: jax.Array) -> jax.Array:
    """Reshapes a leaf, or any array of its shape, to (layers, out, in): the layout of torch's Linear.

    `like.spec` says which axes are the stack, outputs and inputs; layers is 1 without a stack.
    """
    axes = like.axes
    sizes = dict(zip(axes.leaf, leaf.shape, strict=True))
    groups = (axes.stack, axes.outputs, axes.inputs)
    shape = [math.prod(sizes[letter] for letter in letters) for letters in groups]
    return jnp.einsum(f"{axes.leaf}->{''.join(groups)}", leaf).reshape(shape)


def leaf_from_matrices(like: LowRank, layers: jax.Array) -> jax.Array:
    """Reshapes (layers, out, in) to `like.shape`, the leaf's; the inverse of `leaf_to_matrices`."""
    axes = like.axes
    sizes = dict(zip(axes.leaf, like.shape, strict=True))
    order = axes.stack + axes.outputs + axes.inputs
    return jnp.einsum(f"{order}->{axes.leaf}", layers.reshape([sizes[letter] for letter in order]))
