"""Refuses adapters for which the bank of a server has no place, in the words of its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jlora.bank import slots
from jlora.bank.bank import Bank
from jlora.errors import AdapterMismatchError
from jlora.lora.entries import LowRank


def require_configured(bank: Bank, entries: Mapping[str, Any]) -> None:
    """Checks that the bank has a place for each entry {path: entry} of an adapter; its arrays may be shapes alone.

    Raises:
      AdapterMismatchError: it has none; the message names the key of the configuration that would change that.
    """
    for path, entry in entries.items():
        place = bank.entries.get(path)
        if not isinstance(entry, LowRank) and type(place) is not type(entry):
            raise AdapterMismatchError(
                f"{path}: expected LoRA, found what was trained whole or by tokens. Serve the adapter alone: merge it"
                " with jlora export, and give the merged model as `model`"
            )
        if place is None:
            raise AdapterMismatchError(
                f"{path}: expected a module that the configuration's `target_modules` name, found another; add it there"
            )
        if isinstance(entry, LowRank) and isinstance(place, LowRank):
            _require_rank(path, max(entry.ranks), place.scale.shape[-1])
    slots.require_places(bank, dict(entries))


def _require_rank(path: str, rank: int, most: int) -> None:
    if rank > most:
        raise AdapterMismatchError(
            f"{path}: expected a rank of at most {most}, the configuration's `max_rank`, found {rank}. Set max_rank:"
            f" {rank}, or reduce the adapter's: jlora.reduce_rank"
        )
