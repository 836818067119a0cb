"""`AdaptedWeight`: a weight together with the low-rank updates of the leaves that it consists of."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jlora.lora import dora
from jlora.lora.entries import Entry, Full, LowRank, Rows, gather_rows, scale_b
from jlora.ops.products import einsum
from jlora.transform.quantized_weight import LazyWeight, defer, materialize
from jlora.tree.quantized import Quantized, as_array


class Role(enum.Enum):
    """Why the interpreter follows a weight."""

    ADAPTED = enum.auto()
    """Its updates are added wherever it is used."""
    QUANTIZED = enum.auto()
    """It has no update: it is dequantized wherever it is used."""
    OBSERVED = enum.auto()
    """Its uses are recorded; it has no factors yet."""
    PROBED = enum.auto()
    """Nothing is added, but the gradient of `a` is the second moments of its input (`jlora.transform.moment_probe`)."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Update:
    """The update that one leaf adds to a weight: the sum over r of a[r] * b[r], which only `compute_dense` forms.

    `attach_update` makes it. For a kernel (in, out): a (r, in, 1), b (r, 1, out), axes ((0,), (1,)).

    Attributes:
      a, b: (r, *dims), of size 1 on the axes over which they do not vary; the scale is in b unless `scale` has it. None
        if the leaf is observed.
      path: the leaf's path.
      axes: for each dim of the weight, the axes of the leaf that it consists of.
      stack: the axes of the leaf that scans have sliced away.
      picked: the axes of the leaf on which a single index was taken (`w[i]`).
      dropout: rate for the input of a.
      only: the kind of use that sees the update ("linear", "lookup" or "conv"); None is every use.
      role: of the weight that the update is for.
      scale: (r, *dims) with size 1 like a and b, the factor of each component, if the entry has `scale_apart`; a
        component of scale 0 adds nothing, whatever x a is.
    """

    a: jax.Array | None
    b: jax.Array | None
    path: str = dataclasses.field(metadata={"static": True})
    axes: tuple[tuple[int, ...], ...] = dataclasses.field(metadata={"static": True})
    stack: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})
    picked: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})
    dropout: float = dataclasses.field(default=0.0, metadata={"static": True})
    only: str | None = dataclasses.field(default=None, metadata={"static": True})
    role: Role = dataclasses.field(default=Role.ADAPTED, metadata={"static": True})
    scale: jax.Array | None = None

    @property
    def has_factors(self) -> bool:
        """Whether there are a and b: not where the leaf is only observed."""
        return self.role is not Role.OBSERVED

    @property
    def factors(self) -> tuple[jax.Array, jax.Array]:
        """(a, b) of an update that has them, with the scale in b."""
        assert self.a is not None
        assert self.b is not None
        return self.a, self.b if self.scale is None else self.b * self.scale.astype(self.b.dtype)

    def change_factors(self, change: Callable[[jax.Array], jax.Array]) -> Update:
        """Applies `change` to a, b and the scale, where they are there."""
        changed: dict[str, Any] = {
            name: None if factor is None else change(factor)
            for name, factor in (("a", self.a), ("b", self.b), ("scale", self.scale))
        }
        return dataclasses.replace(self, **changed)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdaptedWeight:
    """Represents gain * (weight + the sum of the updates) without computing it.

    Attributes:
      weight: the base's weight (*dims), after all operations on it so far; LazyWeight if it is quantized.
      updates: one for each leaf in it: several if weights were joined, none if the weight is only quantized.
      gain: DoRA's gain, (*dims) with size 1 on dims over which it does not vary; None means 1.
    """

    weight: jax.Array | LazyWeight
    updates: tuple[Update, ...]
    gain: jax.Array | None = None

    @property
    def role(self) -> Role:
        """That of all of its updates: the leaves of one evaluation have one role, unless they have no update."""
        return self.updates[0].role if self.updates else Role.QUANTIZED

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape."""
        return tuple(self.weight.shape)


def watch(path: str, weight: jax.Array | Quantized) -> AdaptedWeight:
    """Wraps the leaf at `path` of the base without an update, to record how it is used (`Context.uses`).

    The one update has neither a nor b; its role is OBSERVED, and its axes are the leaf's own, ((0,), (1,), ...).
    """
    return AdaptedWeight(defer(weight), (Update(None, None, path, _own_axes(weight), role=Role.OBSERVED),))


def probed(path: str, weight: jax.Array | Quantized, entry: LowRank, moments: jax.Array) -> AdaptedWeight:
    """Wraps the leaf at `path` so that the gradient of `moments` is the second moments of the leaf's inputs.

    It adds nothing to the weight: b of its one update is zero. The update's role is PROBED, and its a is `moments`,
    with the first of the two axes `in` in the place of r: (in, in, 1) for a kernel (in, out).

    Args:
      entry: the leaf's, of a matrix product; its spec and the shapes of its a and b are read.
      moments: (*stack, in, in); `in` is the product of the sizes of the leaf's input axes.
    """
    axes = entry.axes
    leading, rest = moments.shape[: len(axes.stack) + 1], len(axes.stack) + 1
    a = moments.reshape(*leading, *entry.a.shape[rest:])
    b = jnp.zeros((*leading, *entry.b.shape[rest:]), jnp.float32)
    a, b = _align_axes(a, axes.a, f"r{axes.leaf}"), _align_axes(b, axes.b, f"r{axes.leaf}")
    return AdaptedWeight(defer(weight), (Update(a, b, path, _own_axes(weight), role=Role.PROBED),))


def wrap_quantized(path: str | None, leaf: Any) -> Any:
    """Wraps a quantized leaf as AdaptedWeight without updates; returns any other leaf or argument unchanged.

    `path` is the leaf's, or None for an argument of the function, which is always returned unchanged.
    """
    return leaf if path is None or not isinstance(leaf, Quantized) else AdaptedWeight(defer(leaf), ())


def attach_update(path: str, weight: jax.Array | Quantized, entry: Entry) -> AdaptedWeight:
    """Returns the leaf at `path` with one update, that of its entry; its role is ADAPTED, its axes the leaf's own.

    a and b are (r, *dims): the leaf's axes after r, with size 1 where they do not vary. LowRank: b is `entry.b` times
    the scale unless `entry.scale_apart`, and a magnitude becomes the weight's gain. Rows: each row is one component; a
    is 1 at the row's index, b is the row's value minus the base's; in a kernel (dim, vocab) a and b are swapped. Full,
    for a table (vocab, dim) that is trained only for some uses (`only`): each column is one component.
    """
    if isinstance(entry, Full):
        a = (entry.value - as_array(weight).astype(entry.value.dtype)).T[..., None]
        b = jnp.eye(len(a), dtype=a.dtype)[:, None]
        return AdaptedWeight(defer(weight), (Update(a, b, path, _own_axes(weight), only=entry.only),))
    if isinstance(entry, Rows):
        return AdaptedWeight(defer(weight), (Update(*_of_rows(entry, weight), path, _own_axes(weight)),))
    axes = entry.axes
    a = _align_axes(entry.a, axes.a, f"r{axes.leaf}")
    b = _align_axes(entry.b if entry.scale_apart else scale_b(entry), axes.b, f"r{axes.leaf}")
    scale = _align_axes(entry.scale, f"{axes.stack}r", f"r{axes.leaf}") if entry.scale_apart else None
    gain = None
    if entry.magnitude is not None:
        gain = _align_axes(dora.gain(entry, weight), axes.stack + axes.outputs, axes.leaf)
    update = Update(a, b, path, _own_axes(weight), dropout=entry.dropout, only=entry.only, scale=scale)
    return AdaptedWeight(defer(weight), (update,), gain)


def _of_rows(entry: Rows, weight: jax.Array | Quantized) -> tuple[jax.Array, jax.Array]:
    """Returns (a, b) of trained rows: their positions on their axis, and their changes along the others."""
    token = jax.nn.one_hot(jnp.asarray(entry.indices), weight.shape[entry.axis], dtype=entry.value.dtype)
    gained = entry.value - gather_rows(as_array(weight), entry).astype(entry.value.dtype)
    others = [1 + axis for axis in range(weight.ndim) if axis != entry.axis]
    token, gained = jnp.expand_dims(token, others), jnp.expand_dims(gained, 1 + entry.axis)
    return (gained, token) if entry.axis else (token, gained)


def _own_axes(weight: jax.Array | Quantized) -> tuple[tuple[int, ...], ...]:
    return tuple((axis,) for axis in range(len(weight.shape)))


def _align_axes(factor: jax.Array, letters: str, out: str) -> jax.Array:
    """Transposes the factor's axes to the order of `out`, with size 1 where it does not vary."""
    order = [letters.index(letter) for letter in out if letter in letters]
    missing = [axis for axis, letter in enumerate(out) if letter not in letters]
    return jnp.expand_dims(jnp.transpose(factor, order), missing)


def with_formed_weight(value: AdaptedWeight) -> AdaptedWeight:
    """Returns the value with an array as its `weight`: dequantized if it is a LazyWeight, else unchanged."""
    return dataclasses.replace(value, weight=materialize(value.weight))


def compute_dense(value: AdaptedWeight) -> jax.Array:
    """Computes gain * (weight + the updates), (*dims) in the weight's dtype, for uses without a rule.

    A LazyWeight is dequantized. All updates are added that have factors; their `only` and `dropout` are not read.
    """
    weight = materialize(value.weight)
    for update in value.updates:
        if update.has_factors:
            weight = weight + sum_products(*update.factors).astype(weight.dtype)
    return weight if value.gain is None else (weight.astype(value.gain.dtype) * value.gain).astype(weight.dtype)


def sum_products(a: jax.Array, b: jax.Array) -> jax.Array:
    """Computes the sum over r of a * b, of size 1 on dims over which neither varies.

    Args:
      a, b: (r, *dims), of size 1 on dims over which they do not vary.
    """
    names = "abcdefghijklmnopqstuvwxyz"[: a.ndim - 1]
    (a_names, a), (b_names, b) = varying(a, names), varying(b, names)
    present = "".join(name for name in names if name in a_names or name in b_names)
    product = einsum(f"{a_names},{b_names}->{present}", a, b)
    return jnp.expand_dims(product, [axis for axis, name in enumerate(names) if name not in present])


def varying(factor: jax.Array, letters: Sequence[str]) -> tuple[str, jax.Array]:
    """Removes the dims over which the factor does not vary; returns (r and the letters of the others, the factor).

    `factor` is (r, *dims), and does not vary over dims of size 1; `letters` has one for each of its dims except r.
    Shape (4, 3, 1) with letters "xy" gives ("rx", the factor as (4, 3)).
    """
    still = tuple(dim for dim in range(1, factor.ndim) if factor.shape[dim] == 1)
    names = "r" + "".join(letters[dim - 1] for dim in range(1, factor.ndim) if dim not in still)
    return names, lax.squeeze(factor, still)


def slice_leading(value: AdaptedWeight) -> tuple[AdaptedWeight, AdaptedWeight]:
    """Prepares a weight for a scan over its leading axis.

    Returns:
      (the weight to scan over, what is known of one slice). In the first, a and b of each update are broadcast over the
      scanned axis and have it before r, the gain has it first too, and a LazyWeight without a stack is dequantized. The
      second is for the scan's body: each update's `axes` lack the first dim, whose leaf axes are added to `stack`. Only
      its metadata counts: `with_arrays(second, a slice of the first)` is the slice.
    """
    if isinstance(value.weight, LazyWeight) and not value.weight.leaf.stack:
        value = with_formed_weight(value)  # the slices are rows of a weight, not layers
    size, gain = value.weight.shape[0], value.gain
    outer = AdaptedWeight(
        value.weight,
        tuple(_leading(update, size) if update.has_factors else update for update in value.updates),
        None if gain is None else jnp.broadcast_to(gain, (size, *gain.shape[1:])),
    )
    inner = (dataclasses.replace(u, axes=u.axes[1:], stack=(*u.stack, *u.axes[0])) for u in value.updates)
    return outer, dataclasses.replace(value, updates=tuple(inner))


def _leading(update: Update, size: int) -> Update:
    """Moves the update's first dim, broadcast to `size`, before r."""
    return update.change_factors(
        lambda factor: jnp.moveaxis(jnp.broadcast_to(factor, (len(factor), size, *factor.shape[2:])), 1, 0)
    )


def with_arrays(like: AdaptedWeight, arrays: AdaptedWeight) -> AdaptedWeight:
    """Combines two AdaptedWeights with equally many updates: the arrays of `arrays`, all else of `like`."""
    pairs = zip(like.updates, arrays.updates, strict=True)
    updates = tuple(dataclasses.replace(update, a=found.a, b=found.b, scale=found.scale) for update, found in pairs)
    return AdaptedWeight(arrays.weight, updates, arrays.gain)
