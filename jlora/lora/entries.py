"""The adapter: {path of a base leaf: LowRank | Full | Rows}, flat, and what can be said of it without a function."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jlora.errors import JloraError
from jlora.lora.spec import Spec, parse_spec
from jlora.tree.leaf_paths import array_leaves, require
from jlora.tree.quantized import Quantized, as_array

Kind = Literal["linear", "lookup", "conv"]
"""How a function uses a weight: in a matrix product, as a table, or as the kernel of a convolution."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRank:
    """A low-rank update of one leaf: leaf + einsum(spec, a, b * scale).

    A Dense kernel of shape (in, out) has the spec "ra,rb->ab"; the same kernels of several scanned layers,
    stacked on a leading axis, "arb,arc->abc"; an attention kernel (in, heads, width) "ra,rbc->abc"; a convolution's
    (k, k, in, out) "rcab,rd->abcd", the channels of A before its window, as in PEFT's files.

    With a magnitude it is DoRA (Liu et al. 2024): magnitude * V / |V|, V the sum above and |V| its norm over the
    input axes, which is not differentiated.

    Attributes:
      a: (*stack, r, *in), the axes over which the function contracts the leaf (or looks it up).
      b: (*stack, r, *out), the axes that it leaves free.
      scale: (*stack, r), lora_alpha / r where a component exists, 0 where it is padding; never trained.
      spec: the einsum of a and b that gives the update in the leaf's shape.
      ranks: the true rank of each layer of the stack (one entry where there is no stack); a layer of rank 0
        is not adapted.
      dropout: the probability with which the input of `a` is dropped where a dropout key is given.
      kind: the use that gave A and B their shapes.
      only: where not None, uses of this kind alone see the update (an embedding that is also the output head).
      tied: whether the leaf is such an embedding, and both uses see the update (`ensure_weight_tying`).
      magnitude: (*stack, *out), DoRA's, or None.
      squared_norm: (*stack, *out), |leaf|^2 over the input axes, never trained; None without a magnitude.
    """

    a: jax.Array
    b: jax.Array
    scale: jax.Array
    spec: str = dataclasses.field(metadata={"static": True})
    ranks: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dropout: float = dataclasses.field(default=0.0, metadata={"static": True})
    kind: Kind = dataclasses.field(default="linear", metadata={"static": True})
    only: Kind | None = dataclasses.field(default=None, metadata={"static": True})
    tied: bool = dataclasses.field(default=False, metadata={"static": True})
    magnitude: jax.Array | None = None
    squared_norm: jax.Array | None = None

    @property
    def axes(self) -> Spec:
        """The axes that the spec names."""
        return parse_spec(self.spec)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the leaf that the update is for."""
        axes = self.axes
        sizes = dict(zip(axes.a + axes.b, (*self.a.shape, *self.b.shape), strict=True))
        return tuple(sizes[letter] for letter in axes.leaf)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Full:
    """A leaf that is trained whole beside the low-rank ones: `value` stands in for the base's leaf.

    Attributes:
      value: of the leaf's shape; with `layers`, (len(layers), ...): those layers of a stack alone.
      layers: the layers that are trained, in rising order; None is the whole leaf.
      only, tied: as in LowRank: which uses see the value of an embedding that is also the output head.
      torch_axes: for each axis of the weight in PyTorch, the axes of (one layer of) the leaf that form it, found from
        how the function uses the leaf: ((1,), (0,)) for a kernel (in, out). None: the leaf's name decides.
    """

    value: jax.Array
    layers: tuple[int, ...] | None = dataclasses.field(default=None, metadata={"static": True})
    only: Kind | None = dataclasses.field(default=None, metadata={"static": True})
    tied: bool = dataclasses.field(default=False, metadata={"static": True})
    torch_axes: tuple[tuple[int, ...], ...] | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def taken(self) -> tuple[int, ...] | None:
        """The indices of the leaf that are trained; None is the whole leaf."""
        return self.layers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Some trained rows of a table of tokens: `value` replaces its rows `indices`.

    Attributes:
      value: (n, dim), whichever axis of the leaf is that of the tokens.
      indices: n different token ids.
      axis: the axis of the tokens: 0 in an embedding (vocab, dim), 1 in an output head's kernel (dim, vocab).
    """

    value: jax.Array
    indices: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    axis: int = dataclasses.field(default=0, metadata={"static": True})

    @property
    def taken(self) -> tuple[int, ...]:
        """The indices of the leaf, on the axis of the tokens, that are trained."""
        return self.indices

    @property
    def place(self) -> tuple[Any, ...]:
        """The index of the rows in the leaf: `leaf[entry.place]`."""
        return (*[slice(None)] * self.axis, np.asarray(self.indices))


Entry = LowRank | Full | Rows
Adapter = Mapping[str, Entry]


def require_fit(adapter: Adapter, leaves: Mapping[str, Any]) -> None:
    """Raises JloraError where an entry's path is not one of `leaves`, or its shape is not that of the leaf."""
    for path, entry in adapter.items():
        require(path, leaves, "the base tree")
        shape = np.shape(leaves[path])
        if isinstance(entry, LowRank):
            fits, found = entry.shape == shape, f"{entry.shape}"
        else:
            at = f" at {entry.taken}" if entry.taken else ""
            fits, found = _whole_fits(entry, shape), f"{np.shape(entry.value)}{at}"
        if not fits:
            raise JloraError(f"{path}: expected an entry for the base's shape {shape}, found one for {found}")


def _whole_fits(entry: Full | Rows, shape: tuple[int, ...]) -> bool:
    found, taken = np.shape(entry.value), entry.taken
    if isinstance(entry, Rows) and entry.axis < len(shape):
        shape = (shape[entry.axis], *shape[: entry.axis], *shape[entry.axis + 1 :])
    if taken is None:
        return found == shape
    return bool(shape) and found == (len(taken), *shape[1:]) and all(0 <= i < shape[0] for i in taken)


def replaced(leaf: jax.Array | Quantized, entry: Full | Rows) -> jax.Array:
    """The base's leaf with what is trained whole in its place; dense, where the leaf is quantized."""
    if entry.taken is None:
        return entry.value
    value = entry.value.astype(leaf.dtype)
    if isinstance(entry, Rows):
        return as_array(leaf).at[entry.place].set(jnp.moveaxis(value, 0, entry.axis))
    return as_array(leaf).at[jnp.asarray(entry.taken)].set(value)


def own_values(leaf: jax.Array, entry: Full | Rows) -> jax.Array:
    """Returns the leaf's own values of what the entry trains, in the shape of `entry.value`."""
    if isinstance(entry, Rows):
        return rows_of(leaf, entry)
    return leaf if entry.layers is None else leaf[jnp.asarray(entry.layers)]


def rows_of(table: jax.Array, entry: Rows) -> jax.Array:
    """Returns the table's own values of the entry's rows, (n, dim)."""
    return jnp.moveaxis(table[entry.place], entry.axis, 0)


def scaled_b(low_rank: LowRank) -> jax.Array:
    """b * scale, (*stack, r, *out), with no gradient into the scale."""
    scale = jax.lax.stop_gradient(low_rank.scale)
    out_axes = range(scale.ndim, low_rank.b.ndim)
    return low_rank.b * jnp.expand_dims(scale, tuple(out_axes)).astype(low_rank.b.dtype)


def labels(adapter: Adapter) -> dict[str, Any]:
    """The adapter's tree with a label for each array, as `optax.partition` and `optax.masked` take them.

    {"…/kernel": LowRank(a="a", b="b", scale="frozen", magnitude="magnitude", squared_norm="frozen"),
     "…/bias": Full(value="head"), "…/embedding": Rows(value="rows")}
    """
    return {path: _label(entry) for path, entry in adapter.items()}


_LABELS = {"a": "a", "b": "b", "scale": "frozen", "magnitude": "magnitude", "squared_norm": "frozen"}


def _label(entry: Entry) -> Any:
    if isinstance(entry, LowRank):
        present = {name: label for name, label in _LABELS.items() if getattr(entry, name) is not None}
    else:
        present = {"value": "rows" if isinstance(entry, Rows) else "head"}
    changes: dict[str, Any] = present
    return dataclasses.replace(entry, **changes)


def split(adapter: Adapter) -> tuple[dict, dict]:
    """(trainable, frozen): two adapters of the same keys, None where the other one holds the array.

    Scales and squared norms are frozen, everything else is trained. `combine` is the inverse.
    """
    marks = labels(adapter)
    trainable = jax.tree.map(lambda label, leaf: None if label == "frozen" else leaf, marks, dict(adapter))
    frozen = jax.tree.map(lambda label, leaf: leaf if label == "frozen" else None, marks, dict(adapter))
    return trainable, frozen


def combine(first: Any, second: Any) -> Any:
    """The one tree that `split` took apart: each leaf from the tree in which it is not None."""
    return jax.tree.map(lambda x, y: y if x is None else x, first, second, is_leaf=lambda x: x is None)


def count_parameters(base: Any, adapter: Adapter | None = None, prefix: str = "") -> tuple[int, int]:
    """(total, trainable) numbers of parameters of the base with the adapter on it.

    A leaf trained whole counts once. Padding of stacked low-rank leaves does not count, nor does the scale.

    Args:
      base: tree of arrays or ShapeDtypeStructs.
      adapter: adapter of arrays or ShapeDtypeStructs; None is the base alone, of which nothing is trained.
      prefix: count only the leaves whose path begins so.
    """
    total = sum(int(np.prod(leaf.shape)) for path, leaf in array_leaves(base).items() if path.startswith(prefix))
    trainable = 0
    for path, entry in (adapter or {}).items():
        if path.startswith(prefix):
            trainable += trained_count(entry)
            total += trained_count(entry) if isinstance(entry, LowRank) else 0
    return total, trainable


def trained_count(entry: Entry) -> int:
    """The number of trained parameters of one entry, padding apart."""
    if not isinstance(entry, LowRank):
        return int(np.prod(entry.value.shape))
    rank_axis = len(entry.scale.shape) - 1
    width, outputs = (int(np.prod(factor.shape[rank_axis + 1 :])) for factor in (entry.a, entry.b))
    copies = int(np.prod(entry.scale.shape[:-1])) // len(entry.ranks)  # stacks other than that of the layers
    magnitudes = 0 if entry.magnitude is None else sum(rank > 0 for rank in entry.ranks) * outputs
    return copies * (sum(entry.ranks) * (width + outputs) + magnitudes)
