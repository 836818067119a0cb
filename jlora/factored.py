"""A weight with its low-rank update as the function sees it, and the operations that only move its axes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jlora.adapter import LowRank, scaled_b


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factored:
    """Stands for weight + sum over r of a[r] * b[r], which is never formed.

    Attributes:
      weight: the base's weight, seen through whatever moved its axes so far: (*dims).
      a, b: (r, *dims), of size 1 on the axes over which they do not vary; the scale is in b. None while the
        function is only watched to see how it uses its weights.
      path: the leaf's path.
      axes: for each dim, the axes of the leaf that it came from.
      stack: the axes of the leaf that scans have sliced away.
      dropout: rate for the input of a.
    """

    weight: jax.Array
    a: jax.Array | None
    b: jax.Array | None
    path: str = dataclasses.field(metadata={"static": True})
    axes: tuple[tuple[int, ...], ...] = dataclasses.field(metadata={"static": True})
    stack: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})
    dropout: float = dataclasses.field(default=0.0, metadata={"static": True})

    @property
    def watched(self) -> bool:
        """True where there is no update yet and only the use is of interest."""
        return self.a is None


def watch(path: str, weight: jax.Array) -> Factored:
    """The leaf without an update, to see how it is used."""
    return Factored(weight, None, None, path, _own_axes(weight))


def factored(path: str, weight: jax.Array, low_rank: LowRank) -> Factored:
    """The leaf with its update: a and b spread over the leaf's axes, r in front."""
    inputs, out = low_rank.spec.split("->")
    a_letters, b_letters = inputs.split(",")
    a = _spread(low_rank.a, a_letters, out)
    b = _spread(scaled_b(low_rank), b_letters, out)
    return Factored(weight, a, b, path, _own_axes(weight), dropout=low_rank.dropout)


def _own_axes(weight: jax.Array) -> tuple[tuple[int, ...], ...]:
    return tuple((axis,) for axis in range(len(weight.shape)))


def _spread(factor: jax.Array, letters: str, out: str) -> jax.Array:
    """(*stack, r, *rest) -> (r, *dims) with size 1 where the factor does not vary."""
    order = [letters.index(letter) for letter in ("r", *out) if letter in letters]
    missing = [1 + axis for axis, letter in enumerate(out) if letter not in letters]
    return jnp.expand_dims(jnp.transpose(factor, order), missing)


def moved(value: Factored, name: str, params: dict[str, Any]) -> Factored | None:
    """The result of a primitive that only moves, drops, adds or casts axes; None where it has no rule.

    A rule gives the new dims' sources among the old ones, and what to do to an array of given dims.
    """
    rule = _RULES.get(name)
    plan = rule(value.weight.shape, params) if rule else None
    if plan is None:
        return None
    sources, apply = plan
    factors = [_apply_to_factor(factor, apply) for factor in (value.a, value.b)]
    if not value.watched and any(factor is None for factor in factors):
        return None
    axes = tuple(tuple(axis for dim in dims for axis in value.axes[dim]) for dims in sources)
    weight = apply(value.weight)
    return dataclasses.replace(value, weight=weight, a=factors[0], b=factors[1], axes=axes)


def _apply_to_factor(factor: jax.Array | None, apply: Callable) -> jax.Array | None:
    if factor is None:
        return None
    if jax.eval_shape(lambda: apply(jnp.zeros(factor.shape[1:], factor.dtype))) is None:
        return None
    return jax.vmap(apply)(factor)


def slice_leading(value: Factored) -> tuple[Factored, Factored]:
    """(what a scan goes over, what its body sees): leading axes first, and the metadata of one slice."""
    outer = value
    if value.a is not None and value.b is not None:
        a, b = (jnp.broadcast_to(f, (f.shape[0], value.weight.shape[0], *f.shape[2:])) for f in (value.a, value.b))
        outer = dataclasses.replace(value, a=jnp.moveaxis(a, 1, 0), b=jnp.moveaxis(b, 1, 0))
    return outer, dataclasses.replace(value, axes=value.axes[1:], stack=(*value.stack, *value.axes[0]))


def _same(shape: tuple[int, ...], apply: Callable) -> tuple:
    return tuple((dim,) for dim in range(len(shape))), apply


def _cast(shape: tuple[int, ...], params: dict) -> tuple | None:
    if not jnp.issubdtype(params["new_dtype"], jnp.floating):
        return None
    return _same(shape, lambda x: lax.convert_element_type(x, params["new_dtype"]))


def _transpose(shape: tuple[int, ...], params: dict) -> tuple:
    permutation = params["permutation"]
    return tuple((dim,) for dim in permutation), lambda x: lax.transpose(x, permutation)


def _squeeze(shape: tuple[int, ...], params: dict) -> tuple:
    dropped = {dim % len(shape) for dim in params["dimensions"]}
    kept = tuple((dim,) for dim in range(len(shape)) if dim not in dropped)
    return kept, lambda x: lax.squeeze(x, tuple(dropped))


def _slice(shape: tuple[int, ...], params: dict) -> tuple:
    starts, limits = params["start_indices"], params["limit_indices"]
    strides = params["strides"] or (1,) * len(shape)

    def apply(x: jax.Array) -> jax.Array:
        spread = [x.shape[dim] == 1 for dim in range(len(shape))]  # nothing to cut where a factor does not vary
        return lax.slice(
            x,
            [0 if one else start for one, start in zip(spread, starts, strict=True)],
            [1 if one else limit for one, limit in zip(spread, limits, strict=True)],
            [1 if one else stride for one, stride in zip(spread, strides, strict=True)],
        )

    return _same(shape, apply)


def _broadcast(shape: tuple[int, ...], params: dict) -> tuple:
    target, dims = params["shape"], params["broadcast_dimensions"]

    def apply(x: jax.Array) -> jax.Array:
        sizes = [1] * len(target)  # a new axis, or one that is spread, is left at 1 in a factor
        for source, dim in enumerate(dims):
            sizes[dim] = x.shape[source]
        whole = tuple(x.shape) == tuple(shape) and x.ndim == len(shape)
        return lax.broadcast_in_dim(x, target if whole else sizes, dims)

    return tuple((dims.index(dim),) if dim in dims else () for dim in range(len(target))), apply


def _reshape(shape: tuple[int, ...], params: dict) -> tuple | None:
    if params.get("dimensions") is not None:
        return None
    groups = _matching_groups(shape, params["new_sizes"])

    def apply(x: jax.Array) -> jax.Array | None:
        sizes: list[int] = []
        for old, new in groups:
            varies = {x.shape[dim] != 1 for dim in old if shape[dim] != 1}
            if len(varies) > 1:
                return None  # a factor that varies over a part of merged axes would have to be spread out
            sizes += new if True in varies or not varies else [1] * len(new)
        return lax.reshape(x, sizes)

    sources: list[tuple[int, ...]] = [tuple(old) for old, new in groups for _ in new]
    return tuple(sources), apply


def _matching_groups(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Splits a reshape into the smallest runs of equal size: [(dims of old, sizes of new)]."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        dims: list[int] = []
        sizes: list[int] = []
        while not (dims or sizes) or math.prod(old[dim] for dim in dims) != math.prod(sizes):
            behind = math.prod(old[dim] for dim in dims) <= math.prod(sizes)
            if i < len(old) and (behind or j == len(new)):
                dims.append(i)
                i += 1
            else:
                sizes.append(new[j])
                j += 1
        groups.append((dims, sizes))
    return groups


def _unchanged(shape: tuple[int, ...], params: dict) -> tuple:
    return _same(shape, lambda x: x)


def _stop_gradient(shape: tuple[int, ...], params: dict) -> tuple:
    return _same(shape, lax.stop_gradient)


_RULES: dict[str, Callable[[tuple[int, ...], dict], tuple | None]] = {
    "broadcast_in_dim": _broadcast,
    "convert_element_type": _cast,
    "copy": _unchanged,
    "reshape": _reshape,
    "slice": _slice,
    "squeeze": _squeeze,
    "stop_gradient": _stop_gradient,
    "transpose": _transpose,
}
