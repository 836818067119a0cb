"""Reads the adapters of some slots out of a bank, in a program."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jlora.bank.bank import Bank
from jlora.lora.entries import Entry


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
