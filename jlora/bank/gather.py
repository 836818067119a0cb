"""Reads the adapters of some slots out of a bank, in a program."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jlora.bank.bank import Bank
from jlora.errors import JloraError
from jlora.lora.entries import Entry


def as_slots(slots: Any) -> jax.Array:
    """Returns slots, integers (groups,), as int32; a number that int32 does not hold becomes one that no bank has.

    Raises:
      JloraError: they are not integers, or not in one axis of at least one.
    """
    dtype = getattr(slots, "dtype", None) or np.asarray(slots).dtype
    if not jnp.issubdtype(dtype, jnp.integer) or np.ndim(slots) != 1 or not np.size(slots):
        raise JloraError(
            f"slots: expected integers of the shape (groups,), at least one; found {dtype} of the shape"
            f" {np.shape(slots)}"
        )
    most = np.iinfo(np.int32).max
    kept = slots if isinstance(slots, jax.Array) else np.asarray(slots)
    if dtype in (np.uint32, np.uint64, np.int64):
        kept = kept.clip(max(-2, np.iinfo(dtype).min), most)
    return jnp.asarray(kept, jnp.int32)


def gather_adapters(bank: Bank, slot: jax.Array) -> dict[str, Entry]:
    """Returns the adapters of the slots, stacked: {path: entry}, arrays (groups, ...).

    Args:
      slot: int32 (groups,); -1 is the base, and a slot that the bank does not have gives NaN.
    """
    return gather_entries(bank.entries, slot, bank.slots)


def gather_entries(entries: dict[str, Entry], slot: jax.Array, slots: int) -> dict[str, Entry]:
    """Returns the places `slot` of entries with arrays (slots + 1, ...), as `gather_adapters` describes."""
    beyond = slots + 1
    place = jnp.where(slot == -1, slots, jnp.where((slot >= 0) & (slot < slots), slot, beyond))
    return jax.tree.map(lambda x: jnp.take(x, place, axis=0, mode="fill", fill_value=jnp.nan), entries)
