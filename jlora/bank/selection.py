"""`Selection`: a few adapters of a bank side by side, as one update of their joint rank that all rows share.

Where rows of many adapters are computed again and again, as when text is written token by token, it saves copying each
row's A and B in every step: x A is one product for all adapters, the parts that are not a row's own are set to zero,
and the product with B is one, too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jlora.bank.bank import Bank
from jlora.bank.gather import as_slots, gather_adapters, gather_entries
from jlora.lora.entries import Entry, LowRank

if TYPE_CHECKING:
    from jaxtyping import Array, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Selection:
    """Some adapters of a bank; `adapt_many` takes it in the bank's place, with places instead of slots.

    Attributes:
      joined: {path: LowRank}, a (*stack, places * r, *in) and b (*stack, places * r, *out): the components of the first
        place, then those of the second, and so on; scale (places, *stack, r). An adapter with a number that is not
        finite has zeros in a and b and NaN as its scale, so that it reaches its own rows alone.
      gathered: {path: entry}, arrays (places + 1, ...) as in a bank: entries with a magnitude (DoRA), and those that
        replace a leaf in full. They are gathered for each row.
      places: how many adapters it holds.
    """

    joined: dict[str, LowRank]
    gathered: dict[str, Entry]
    places: int = dataclasses.field(metadata={"static": True})


def select(bank: Bank, slots: Int[Array, " places"]) -> Selection:
    """Returns a selection of the adapters in `slots`, int32 (places,).

    A slot without an adapter, or one that the bank has not, gives NaN; -1 is the base, which needs no place.
    """
    slots = as_slots(slots)
    gathered = gather_adapters(bank, jnp.append(slots, -1))
    joined = {
        path: _join(jax.tree.map(lambda x: x[:-1], entry))
        for path, entry in gathered.items()
        if isinstance(entry, LowRank) and entry.magnitude is None
    }
    rest = {path: entry for path, entry in gathered.items() if path not in joined}
    return Selection(joined, rest, slots.shape[0])


def replace_selected(selection: Selection, place: Int[Array, ""], bank: Bank, slot: Int[Array, ""]) -> Selection:
    """Returns the selection with the adapter in the bank's `slot` at `place`; no other place changes by a bit.

    Nothing changes at all if the selection has no such place.
    """
    one = select(bank, jnp.reshape(slot, (1,)))
    is_there = (place >= 0) & (place < selection.places)

    def write_at(x: jax.Array, y: jax.Array, start: Any, axis: int) -> jax.Array:
        old = jax.lax.dynamic_slice_in_dim(x, start, y.shape[axis], axis)
        return jax.lax.dynamic_update_slice_in_dim(x, jnp.where(is_there, y, old), start, axis)

    def write(old: LowRank, new: LowRank) -> LowRank:
        axis, width = new.scale.ndim - 2, new.scale.shape[-1]
        a, b = (write_at(x, y, place * width, axis) for x, y in ((old.a, new.a), (old.b, new.b)))
        return dataclasses.replace(old, a=a, b=b, scale=write_at(old.scale, new.scale, place, 0))

    joined = {path: write(entry, one.joined[path]) for path, entry in selection.joined.items()}
    gathered = jax.tree.map(lambda x, y: write_at(x, y[:1], place, 0), selection.gathered, one.gathered)
    return Selection(joined, gathered, selection.places)


def divide_adapters(adapters: Bank | Selection, slot: jax.Array) -> tuple[Any, Callable[[Any], dict[str, Entry]]]:
    """Divides adapters into what each group of rows has of its own, and what all share.

    Args:
      slot: int32 (groups,), a slot of the bank or a place of the selection for each group; -1 is the base, and one that
        there is not gives NaN.

    Returns:
      (the groups' own arrays (groups, ...), a function that makes one group's adapter of its own arrays).
    """
    if isinstance(adapters, Bank):
        return gather_adapters(adapters, slot), lambda own: own
    scales = {path: _scales(entry, slot) for path, entry in adapters.joined.items()}

    def join(own: Any) -> dict[str, Entry]:
        scales, gathered = own
        joined = {path: dataclasses.replace(entry, scale=scales[path]) for path, entry in adapters.joined.items()}
        return {**joined, **gathered}

    return (scales, gather_entries(adapters.gathered, slot, adapters.places)), join


def _join(entry: LowRank) -> LowRank:
    """Joins the ranks of an entry with arrays (places, ...), as `Selection.joined` describes."""
    places, axis = entry.scale.shape[0], entry.scale.ndim - 1
    is_finite = jnp.stack([jnp.isfinite(x).all(tuple(range(1, x.ndim))) for x in (entry.a, entry.b)]).all(0)

    def of_place(x: jax.Array) -> jax.Array:
        return is_finite.reshape(places, *[1] * (x.ndim - 1))

    def merge(x: jax.Array) -> jax.Array:
        moved = jnp.moveaxis(jnp.where(of_place(x), x, 0), 0, axis - 1)
        return moved.reshape(*moved.shape[: axis - 1], places * x.shape[axis], *moved.shape[axis + 1 :])

    scale = jnp.where(of_place(entry.scale), entry.scale, jnp.nan)
    ranks = tuple(rank * places for rank in entry.ranks)
    return dataclasses.replace(entry, a=merge(entry.a), b=merge(entry.b), scale=scale, ranks=ranks, scale_apart=True)


def _scales(entry: LowRank, slot: jax.Array) -> jax.Array:
    """Returns the scales of all places for each group, (groups, *stack, places * r): 0 but for the group's own."""
    places, ones = entry.scale.shape[0], [1] * (entry.scale.ndim - 1)
    own = slot[:, None] == jnp.arange(places)[None]
    scale = jnp.where(own.reshape(*own.shape, *ones), entry.scale[None], 0)
    is_known = (slot >= -1) & (slot < places)
    scale = jnp.where(is_known.reshape(-1, 1, *ones), scale, jnp.nan)
    moved = jnp.moveaxis(scale, 1, -2)  # (groups, *stack, places, r)
    return moved.reshape(*moved.shape[:-2], math.prod(moved.shape[-2:]))
