"""`put`, `take` and `drop`: an adapter goes into a slot of a bank, is read from it, and leaves it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jlora.bank.bank import Bank
from jlora.errors import AdapterMismatchError, JloraError
from jlora.lora.entries import Adapter, Entry, Full, LowRank


def put(bank: Bank, slot: int, adapter: Adapter, *, donate: bool = False) -> Bank:
    """Returns the bank with the adapter in the slot; what was in it is replaced, and no other slot changes by a bit.

    One program writes all adapters of a bank, whatever their ranks and targets.

    Args:
      adapter: {path: LowRank | Full} of the bank's base; a path that it lacks is not adapted. Its dropout does not
        matter: a bank has one rate.
      donate: write into the arrays of `bank`, which can then no longer be used.

    Raises:
      AdapterMismatchError: the bank has no place for an entry: its path, its form (DoRA, layers, use of a tied
        embedding), its rank or its shape; nothing was written.
      JloraError: there is no such slot.
    """
    _require_slot(bank, slot)
    require_places(bank, adapter)
    padded = {path: _pad(path, bank, adapter.get(path)) for path in bank.entries}
    ranks = {path: _ranks(bank, path, adapter.get(path)) for path in bank.entries}
    return (_write_donated if donate else _write)(bank, np.int32(slot), padded, ranks)


def take(bank: Bank, slot: int) -> dict[str, Entry]:
    """Returns the adapter in the slot with its true ranks, bit for bit as `put` was given it or training left it.

    Raises:
      JloraError: there is no such slot, or it holds no adapter.
    """
    _require_slot(bank, slot)
    if not bool(bank.filled[slot]):
        raise JloraError(f"slot {slot}: expected an adapter, found none; jlora.put puts one into it")
    found: dict[str, Entry] = {}
    for path, entry in bank.entries.items():
        ranks = tuple(int(rank) for rank in bank.ranks[path][slot])
        if any(ranks):
            found[path] = _cut(jax.tree.map(lambda x: x[slot], entry), ranks)
    return found


def drop(bank: Bank, slot: int, *, donate: bool = False) -> Bank:
    """Returns the bank with an empty slot: what is computed with it is NaN until another adapter is put there.

    Args:
      donate: write into the arrays of `bank`, which can then no longer be used.

    Raises:
      JloraError: there is no such slot.
    """
    _require_slot(bank, slot)
    return (_clear_donated if donate else _clear)(bank, np.int32(slot))


def require_places(bank: Bank, adapter: Adapter) -> None:
    """Raises AdapterMismatchError if the bank has no place for an entry of the adapter, as `put` does.

    The arrays of the bank may be ShapeDtypeStructs.
    """
    for path, entry in adapter.items():
        _require_place(bank, path, entry)


def _require_slot(bank: Bank, slot: int) -> None:
    if isinstance(slot, (bool, np.bool_)) or not isinstance(slot, (int, np.integer)) or not 0 <= slot < bank.slots:
        raise JloraError(f"slot: expected 0 to {bank.slots - 1}, found {slot!r}")


def _require_place(bank: Bank, path: str, entry: Entry) -> None:
    """Raises AdapterMismatchError if the entry does not fit into the bank."""
    place = bank.entries.get(path)
    if place is None:
        kind = "modules_to_save" if isinstance(entry, Full) else "targets"
        raise AdapterMismatchError(
            f"{path}: expected a leaf for which the bank has a place, found none. Name its module in make_bank's {kind}"
        )
    expected, found = _form(place, leading=1), _form(entry, leading=0)
    for name in {**expected, **found}:
        if expected.get(name) != found.get(name):
            raise AdapterMismatchError(
                f"{path}: {name}: expected {expected.get(name)!r} as in the bank, found {found.get(name)!r}. Put the"
                " adapter into a bank that is made for its form"
            )
    if isinstance(entry, LowRank) and isinstance(place, LowRank):
        highest, limit = max(entry.ranks), place.scale.shape[-1]
        if highest > limit:
            raise AdapterMismatchError(
                f"{path}: expected a rank of at most {limit}, the bank's max_rank, found {highest}. Make the bank with"
                f" max_rank={highest}, or reduce the adapter's: jlora.reduce_rank"
            )


def _form(entry: Entry, leading: int) -> dict[str, Any]:
    """Returns {name: value} of what an entry and its place must have in common."""
    form: dict[str, Any] = {"entry": type(entry).__name__, "only": getattr(entry, "only", None)}
    if isinstance(entry, LowRank):
        rank_axis = entry.scale.ndim - 1
        sizes = [x.shape[leading:rank_axis] + x.shape[rank_axis + 1 :] for x in (entry.a, entry.b)]
        return (
            form
            | {"spec": entry.spec, "shapes of A and B without the rank": sizes}
            | {"use_dora": entry.magnitude is not None}
        )
    return form | {"shape": entry.value.shape[leading:], "layers": getattr(entry, "layers", None)}


def _pad(path: str, bank: Bank, entry: Entry | None) -> list[np.ndarray | None] | None:
    """Returns the entry's arrays (a, b, scale, magnitude) or (value,), widened with zeros to the bank's rank.

    None is an entry without effect, whose arrays are those of the base's place.
    """
    place = bank.entries[path]
    if not isinstance(place, LowRank):
        own = entry if isinstance(entry, Full) else dataclasses.replace(place, value=place.value[-1])
        return [np.asarray(own.value, place.value.dtype)]
    if not isinstance(entry, LowRank):
        arrays = (place.a, place.b, place.scale, place.magnitude)
        return [None if x is None else np.asarray(x[-1]) for x in arrays]
    axis, width = entry.scale.ndim - 1, place.scale.shape[-1]

    def widen(x: jax.Array, like: jax.Array) -> np.ndarray:
        if x.shape[axis] == width:
            return np.asarray(x, like.dtype)
        room = [(0, width - x.shape[axis] if i == axis else 0) for i in range(x.ndim)]
        return np.pad(np.asarray(x, like.dtype), room)

    magnitude = None if entry.magnitude is None else np.asarray(entry.magnitude)
    return [widen(entry.a, place.a), widen(entry.b, place.b), widen(entry.scale, place.scale), magnitude]


def _ranks(bank: Bank, path: str, entry: Entry | None) -> np.ndarray:
    count = bank.ranks[path].shape[1]
    if entry is None:
        return np.zeros(count, np.int32)
    return np.asarray(entry.ranks if isinstance(entry, LowRank) else [1], np.int32)


def _cut(entry: Entry, ranks: tuple[int, ...]) -> Entry:
    """Removes the padding beyond the largest of the ranks."""
    if not isinstance(entry, LowRank):
        return entry
    axis, width = entry.scale.ndim - 1, max(ranks)
    a, b, scale = (jax.lax.slice_in_dim(x, 0, width, axis=axis) for x in (entry.a, entry.b, entry.scale))
    return dataclasses.replace(entry, a=a, b=b, scale=scale, ranks=ranks)


def _write_slot(bank: Bank, slot: Any, padded: dict[str, Any], ranks: dict[str, Any]) -> Bank:
    entries = {path: _with_arrays(entry, slot, padded[path]) for path, entry in bank.entries.items()}
    stored = {path: bank.ranks[path].at[slot].set(ranks[path]) for path in bank.ranks}
    return Bank(entries, stored, bank.filled.at[slot].set(True))


def _with_arrays(entry: Entry, slot: Any, arrays: list) -> Entry:
    names = ("a", "b", "scale", "magnitude") if isinstance(entry, LowRank) else ("value",)
    written = {
        name: getattr(entry, name).at[slot].set(array)
        for name, array in zip(names, arrays, strict=True)
        if array is not None
    }
    return dataclasses.replace(entry, **written)


def _clear_slot(bank: Bank, slot: Any) -> Bank:
    entries = {
        path: dataclasses.replace(entry, scale=entry.scale.at[slot].set(jnp.nan))
        if isinstance(entry, LowRank)
        else dataclasses.replace(entry, value=entry.value.at[slot].set(entry.value[-1]))
        for path, entry in bank.entries.items()
    }
    return dataclasses.replace(bank, entries=entries, filled=bank.filled.at[slot].set(False))


_write, _write_donated = jax.jit(_write_slot), jax.jit(_write_slot, donate_argnums=0)
_clear, _clear_donated = jax.jit(_clear_slot), jax.jit(_clear_slot, donate_argnums=0)
