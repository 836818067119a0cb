"""A weight with its low-rank update as the function sees it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jlora import dora
from jlora.adapter import Entry, Full, Rows, scaled_b
from jlora.products import einsum
from jlora.quantization.leaf import Quantized, as_array
from jlora.transform.deferred import Deferred, deferred, formed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factored:
    """Stands for gain * (weight + sum over r of a[r] * b[r]), which is never formed.

    Attributes:
      weight: the base's weight, seen through whatever moved its axes so far: (*dims). Deferred where it is quantized.
      a, b: (r, *dims), of size 1 on the axes over which they do not vary; the scale is in b. None where there is no
        update: the weight is quantized, or watched.
      gain: DoRA's, (*dims) with size 1 likewise; None is 1.
      path: the leaf's path.
      axes: for each dim, the axes of the leaf that it came from.
      stack: the axes of the leaf that scans have sliced away.
      picked: the axes of the leaf of which one place was taken (`w[i]`).
      dropout: rate for the input of a.
      only: the kind of use that sees the update; None is every use.
      tapped: the gradient of a is to be the second moments of the input (`jlora.transform.tap`).
      watched: only the use is of interest.
    """

    weight: jax.Array | Deferred
    a: jax.Array | None
    b: jax.Array | None
    gain: jax.Array | None
    path: str = dataclasses.field(metadata={"static": True})
    axes: tuple[tuple[int, ...], ...] = dataclasses.field(metadata={"static": True})
    stack: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})
    picked: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})
    dropout: float = dataclasses.field(default=0.0, metadata={"static": True})
    only: str | None = dataclasses.field(default=None, metadata={"static": True})
    tapped: bool = dataclasses.field(default=False, metadata={"static": True})
    watched: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def is_only_quantized(self) -> bool:
        """Whether this stands for a quantized weight without an update."""
        return self.a is None and not self.watched


def watch(path: str, weight: jax.Array | Quantized) -> Factored:
    """The leaf without an update, to see how it is used."""
    return Factored(deferred(weight), None, None, None, path, _own_axes(weight), watched=True)


def unadapted(path: str | None, leaf: Any) -> Any:
    """A leaf or an argument without an update: a quantized leaf as Factored, anything else as it is."""
    if path is None or not isinstance(leaf, Quantized):
        return leaf
    return Factored(deferred(leaf), None, None, None, path, _own_axes(leaf))


def factored(path: str, weight: jax.Array | Quantized, entry: Entry) -> Factored:
    """The leaf with its update: a and b spread over the leaf's axes, r in front.

    A row of `Rows` is a component of its own: a is 1 at the row's index, b what the row gains. So is a column of a
    table that is trained whole for some uses alone: a is what the column gains, b is 1 there.
    """
    if isinstance(entry, Full):
        a = (entry.value - as_array(weight).astype(entry.value.dtype)).T[..., None]
        b = jnp.eye(len(a), dtype=a.dtype)[:, None]
        return Factored(deferred(weight), a, b, None, path, _own_axes(weight), only=entry.only)
    if isinstance(entry, Rows):
        a = jax.nn.one_hot(jnp.asarray(entry.indices), weight.shape[0], dtype=entry.value.dtype)
        b = entry.value - as_array(weight)[jnp.asarray(entry.indices)].astype(entry.value.dtype)
        a = jnp.expand_dims(a, tuple(range(2, 1 + weight.ndim)))
        return Factored(deferred(weight), a, jnp.expand_dims(b, 1), None, path, _own_axes(weight))
    stack, inputs, outputs, out = dora.letters(entry)
    a = _spread(entry.a, f"{stack}r{inputs}", f"r{out}")
    b = _spread(scaled_b(entry), f"{stack}r{outputs}", f"r{out}")
    gain = None if entry.magnitude is None else _spread(dora.gain(entry, weight), stack + outputs, out)
    return Factored(deferred(weight), a, b, gain, path, _own_axes(weight), dropout=entry.dropout, only=entry.only)


def _own_axes(weight: jax.Array | Quantized) -> tuple[tuple[int, ...], ...]:
    return tuple((axis,) for axis in range(len(weight.shape)))


def _spread(factor: jax.Array, letters: str, out: str) -> jax.Array:
    """The factor's axes in the order of `out`, with size 1 where it does not vary."""
    order = [letters.index(letter) for letter in out if letter in letters]
    missing = [axis for axis, letter in enumerate(out) if letter not in letters]
    return jnp.expand_dims(jnp.transpose(factor, order), missing)


def with_formed_weight(value: Factored) -> Factored:
    """The same with its weight as an array."""
    return dataclasses.replace(value, weight=formed(value.weight))


def dense(value: Factored) -> jax.Array:
    """gain * (weight + a b), formed: for uses that no rule covers."""
    weight = formed(value.weight)
    if value.a is None:
        return weight
    assert value.b is not None
    names = "abcdefghijklmnopq"[: value.weight.ndim]
    (a_names, a), (b_names, b) = varying(value.a, names), varying(value.b, names)
    present = "".join(name for name in names if name in a_names or name in b_names)
    update = einsum(f"{a_names},{b_names}->{present}", a, b)
    update = jnp.expand_dims(update, [axis for axis, name in enumerate(names) if name not in present])
    whole = weight + update.astype(weight.dtype)
    return whole if value.gain is None else (whole.astype(value.gain.dtype) * value.gain).astype(whole.dtype)


def varying(factor: jax.Array, letters: Sequence[str]) -> tuple[str, jax.Array]:
    """(r and the letters of the dims over which the factor varies, the factor with no others)."""
    still = tuple(dim for dim in range(1, factor.ndim) if factor.shape[dim] == 1)
    names = "r" + "".join(letters[dim - 1] for dim in range(1, factor.ndim) if dim not in still)
    return names, lax.squeeze(factor, still)


def slice_leading(value: Factored) -> tuple[Factored, Factored]:
    """(what a scan goes over, what its body sees): leading axes first, and the metadata of one slice."""
    if isinstance(value.weight, Deferred) and not value.weight.leaf.stack:
        value = with_formed_weight(value)  # the slices are no layers, but rows of one
    outer, size = value, value.weight.shape[0]
    if value.a is not None and value.b is not None:
        a, b = (jnp.broadcast_to(f, (f.shape[0], size, *f.shape[2:])) for f in (value.a, value.b))
        gain = None if value.gain is None else jnp.broadcast_to(value.gain, (size, *value.gain.shape[1:]))
        outer = dataclasses.replace(value, a=jnp.moveaxis(a, 1, 0), b=jnp.moveaxis(b, 1, 0), gain=gain)
    return outer, dataclasses.replace(value, axes=value.axes[1:], stack=(*value.stack, *value.axes[0]))


def with_arrays(like: Factored, arrays: Factored) -> Factored:
    """The arrays of the one with the metadata of the other."""
    return dataclasses.replace(like, weight=arrays.weight, a=arrays.a, b=arrays.b, gain=arrays.gain)
