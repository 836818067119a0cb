"""The adapter, a flat {path of a base leaf: LowRank | Full | Rows}, and functions on it that need no model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jlora.errors import AdapterMismatchError
from jlora.lora.spec import Spec, parse_spec
from jlora.tree.leaf_paths import array_leaves, require
from jlora.tree.quantized import Quantized, as_array

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PyTree

UseKind = Literal["linear", "lookup", "conv"]
"""How a function uses a weight: in a matrix product, as an embedding table, or as the kernel of a convolution."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRank:
    """A low-rank update of one leaf: leaf + einsum(spec, a, b * scale).

    Examples of `spec`: "ra,rb->ab" for a Dense kernel (in, out); "arb,arc->abc" for such kernels of several scanned
    layers, stacked on a leading axis; "ra,rbc->abc" for an attention kernel (in, heads, width); "rcab,rd->abcd" for a
    convolution (k, k, in, out), where the channels of A come before its window, as in PEFT's files.

    With a magnitude the weight is that of DoRA (Liu et al. 2024): magnitude * V / |V|, where V is the sum above and |V|
    its norm over the input axes, which is not differentiated.

    Attributes:
      a: (*stack, r, *in), the axes over which the function contracts the leaf (or looks it up).
      b: (*stack, r, *out), the axes that it leaves free.
      scale: (*stack, r), lora_alpha / r for a component, 0 for padding; never trained.
      spec: the einsum of a and b that gives the update in the leaf's shape.
      ranks: the true rank of each layer of the stack (one entry if there is no stack); a layer of rank 0 is not
        adapted.
      dropout: the probability with which the input of `a` is dropped if a dropout key is given.
      kind: the use that determined the shapes of A and B: "linear", "lookup" or "conv".
      only: if not None, the update applies only to uses of this kind (an embedding that is also the output head).
      tied: whether the leaf is such an embedding and the update applies to both uses (`ensure_weight_tying`).
      magnitude: (*stack, *out), DoRA's, or None.
      squared_norm: (*stack, *out), |leaf|^2 over the input axes, never trained; None without a magnitude.
      scale_apart: whether `adapt` multiplies x a by the scale, not b. So one a and b serve rows of other scales, in one
        product under `jax.vmap`; components of scale 0 then add nothing, even where x a overflows.
    """

    a: Float[Array, " *stack_r_in"]
    b: Float[Array, " *stack_r_out"]
    scale: Float[Array, "*stack r"]
    spec: str = dataclasses.field(metadata={"static": True})
    ranks: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    dropout: float = dataclasses.field(default=0.0, metadata={"static": True})
    kind: UseKind = dataclasses.field(default="linear", metadata={"static": True})
    only: UseKind | None = dataclasses.field(default=None, metadata={"static": True})
    tied: bool = dataclasses.field(default=False, metadata={"static": True})
    magnitude: Float[Array, " *stack_out"] | None = None
    squared_norm: Float[Array, " *stack_out"] | None = None
    scale_apart: bool = dataclasses.field(default=False, metadata={"static": True})

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
    """A leaf that is trained in full, such as a head or a bias: `value` replaces the base's leaf.

    Attributes:
      value: of the leaf's shape; with `layers`, (len(layers), ...), only those layers of a stack.
      layers: the layers that are trained, in ascending order; None means the whole leaf.
      only, tied: as in LowRank: to which uses of an embedding that is also the output head the value applies.
      torch_axes: for each axis of the weight in PyTorch, the axes of (one layer of) the leaf that form it, found from
        how the function uses the leaf: ((1,), (0,)) for a kernel (in, out). If None, the leaf's name decides.
    """

    value: Float[Array, " *shape"]
    layers: tuple[int, ...] | None = dataclasses.field(default=None, metadata={"static": True})
    only: UseKind | None = dataclasses.field(default=None, metadata={"static": True})
    tied: bool = dataclasses.field(default=False, metadata={"static": True})
    torch_axes: tuple[tuple[int, ...], ...] | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def taken(self) -> tuple[int, ...] | None:
        """The indices of the leaf that are trained; None is the whole leaf."""
        return self.layers


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Trained rows of an embedding or output head, one for each token id: `value` replaces the rows `indices`.

    Attributes:
      value: (n, dim), for both values of `axis`.
      indices: n different token ids.
      axis: the axis of the tokens: 0 in an embedding (vocab, dim), 1 in an output head's kernel (dim, vocab).
    """

    value: Float[Array, "n dim"]
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
"""{path of a leaf of the base, its keys joined by "/": the entry}."""


def require_fit(adapter: Adapter, leaves: Mapping[str, Any]) -> None:
    """Raises AdapterMismatchError if an entry's path is not one of `leaves`, or its shape is not that of the leaf.

    The shape is `LowRank.shape`, or that of `value`; layers or rows that the leaf does not have are refused too.

    Args:
      leaves: {path: leaf} of the base, arrays or ShapeDtypeStructs; leaves without an entry are allowed.
    """
    for path, entry in adapter.items():
        require(path, leaves, "the base tree")
        shape = np.shape(leaves[path])
        if isinstance(entry, LowRank):
            fits, found = entry.shape == shape, f"{entry.shape}"
        else:
            at = f" at {entry.taken}" if entry.taken else ""
            fits, found = _whole_fits(entry, shape), f"{np.shape(entry.value)}{at}"
        if not fits:
            raise AdapterMismatchError(f"{path}: expected an entry for the base's shape {shape}, found one for {found}")


def _whole_fits(entry: Full | Rows, shape: tuple[int, ...]) -> bool:
    found, taken = np.shape(entry.value), entry.taken
    if isinstance(entry, Rows) and entry.axis < len(shape):
        shape = (shape[entry.axis], *shape[: entry.axis], *shape[entry.axis + 1 :])
    if taken is None:
        return found == shape
    return bool(shape) and found == (len(taken), *shape[1:]) and all(0 <= i < shape[0] for i in taken)


def insert_trained(leaf: jax.Array | Quantized, entry: Full | Rows) -> jax.Array:
    """Returns the leaf with its trained layers or rows replaced by the entry's value, dense, in the leaf's dtype.

    A `Full` entry without layers replaces the whole leaf: the result is `entry.value` itself.
    """
    if entry.taken is None:
        return entry.value
    value = entry.value.astype(leaf.dtype)
    if isinstance(entry, Rows):
        return as_array(leaf).at[entry.place].set(jnp.moveaxis(value, 0, entry.axis))
    return as_array(leaf).at[jnp.asarray(entry.taken)].set(value)


def own_values(leaf: jax.Array, entry: Full | Rows) -> jax.Array:
    """Returns the leaf's own values of the layers or rows that the entry trains, in the shape of `entry.value`."""
    if isinstance(entry, Rows):
        return gather_rows(leaf, entry)
    return leaf if entry.layers is None else leaf[jnp.asarray(entry.layers)]


def gather_rows(table: jax.Array, entry: Rows) -> jax.Array:
    """Returns the table's own values of the rows `entry.indices` on the axis `entry.axis`, (n, dim)."""
    return jnp.moveaxis(table[entry.place], entry.axis, 0)


def scale_b(low_rank: LowRank) -> jax.Array:
    """Computes b * scale, (*stack, r, *out), in the dtype of b, without a gradient for the scale."""
    scale = jax.lax.stop_gradient(low_rank.scale)
    out_axes = range(scale.ndim, low_rank.b.ndim)
    return low_rank.b * jnp.expand_dims(scale, tuple(out_axes)).astype(low_rank.b.dtype)


def labels(adapter: Adapter) -> dict[str, Any]:
    """Returns the adapter's tree with a label for each array, for `optax.partition` and `optax.masked`.

    {"…/kernel": LowRank(a="a", b="b", scale="frozen", magnitude="magnitude", squared_norm="frozen"),
     "…/bias": Full(value="head"), "…/embedding": Rows(value="rows")}
    """
    labelled = {}
    for path, entry in adapter.items():
        found: dict[str, Any] = {"value": "rows" if isinstance(entry, Rows) else "head"}
        if isinstance(entry, LowRank):
            found = {name: label for name, label in _LABELS.items() if getattr(entry, name) is not None}
        labelled[path] = dataclasses.replace(entry, **found)
    return labelled


_LABELS = {"a": "a", "b": "b", "scale": "frozen", "magnitude": "magnitude", "squared_norm": "frozen"}


def split(adapter: Adapter) -> tuple[dict, dict]:
    """Splits an adapter into (trainable, frozen): the same tree twice, with None for arrays of the other one.

    Scales and squared norms are frozen, everything else is trained. `combine` is the inverse.
    """
    marks = labels(adapter)
    trainable = jax.tree.map(lambda label, leaf: None if label == "frozen" else leaf, marks, dict(adapter))
    frozen = jax.tree.map(lambda label, leaf: leaf if label == "frozen" else None, marks, dict(adapter))
    return trainable, frozen


def combine(first: PyTree, second: PyTree) -> PyTree:
    """Joins the two trees that `split` returned: takes each leaf from the tree in which it is not None."""
    return jax.tree.map(lambda x, y: y if x is None else x, first, second, is_leaf=lambda x: x is None)


def count_parameters(base: PyTree, adapter: Adapter | None = None, prefix: str = "") -> tuple[int, int]:
    """Counts the (total, trainable) parameters of the base with the adapter.

    The total is all numbers of the base, and A, B and magnitude of the `LowRank` entries; the values of `Full` and
    `Rows` entries are trainable, but not counted a second time in the total. Padding and scales do not count.

    Args:
      base: tree of arrays or ShapeDtypeStructs.
      adapter: adapter of arrays or ShapeDtypeStructs; None counts only the base, without trainable parameters.
      prefix: count only the leaves whose path starts with it.
    """
    total = sum(int(np.prod(leaf.shape)) for path, leaf in array_leaves(base).items() if path.startswith(prefix))
    trainable = 0
    for path, entry in (adapter or {}).items():
        if path.startswith(prefix):
            trainable += count_trained(entry)
            total += count_trained(entry) if isinstance(entry, LowRank) else 0
    return total, trainable


def count_trained(entry: Entry) -> int:
    """Returns the number of trained parameters of one entry, without padding.

    For `Full` and `Rows` it is the size of `value`. A layer of rank r of a `LowRank` has r * (inputs + outputs), and
    with DoRA `outputs` more unless r is 0.
    """
    if not isinstance(entry, LowRank):
        return int(np.prod(entry.value.shape))
    rank_axis = len(entry.scale.shape) - 1
    width, outputs = (int(np.prod(factor.shape[rank_axis + 1 :])) for factor in (entry.a, entry.b))
    copies = int(np.prod(entry.scale.shape[:-1])) // len(entry.ranks)  # stacks other than that of the layers
    magnitudes = 0 if entry.magnitude is None else sum(rank > 0 for rank in entry.ranks) * outputs
    return copies * (sum(entry.ranks) * (width + outputs) + magnitudes)
