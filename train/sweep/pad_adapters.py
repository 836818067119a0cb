"""Pads the adapters of a group to one form, so that they can be stacked and exchanged without another compilation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jlora
from jlora.lora.entries import Adapter, Entry, scale_b

Ranks = Mapping[str, tuple[int, ...]]
"""{path: the true rank of each layer} of an adapter's low-rank entries."""


def common_form(adapters: Sequence[Adapter]) -> dict[str, Entry]:
    """Returns an adapter of zeros with every path that an adapter has, at the path's largest rank in any of them.

    Raises:
      JloraError: adapters that cannot be stacked, as for `jlora.stack`.
    """
    joined = jlora.stack(adapters).items()
    return {path: _fill_rank(jax.tree.map(lambda x: x[0] * 0, entry), len(adapters)) for path, entry in joined}


def pad(adapter: Adapter, form: Adapter) -> dict[str, Entry]:
    """Pads the adapter to `form`, a result of `common_form`; the padding has scale 0 and is never trained."""
    joined = jlora.stack([form, adapter])
    return {path: _fill_rank(jax.tree.map(lambda x: x[1], joined[path]), 2) for path in form}


def ranks_of(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    """Returns the true ranks of an adapter that is not padded."""
    return {path: entry.ranks for path, entry in adapter.items() if isinstance(entry, jlora.LowRank)}


def cut(padded: Adapter, ranks: Ranks) -> dict[str, Entry]:
    """Removes the padding; the inverse of `pad` for an adapter with these ranks."""
    kept = {path: entry for path, entry in padded.items() if not isinstance(entry, jlora.LowRank) or path in ranks}
    return {path: _cut_entry(entry, ranks.get(path, ())) for path, entry in kept.items()}


def have_one_effect(adapters: Sequence[Adapter]) -> bool:
    """Returns whether padded adapters make the same model, bit for bit: no A B has an effect, and the rest is equal.

    This holds for most starts, where B is zero. DoRA's magnitudes are not compared: the result is false.
    """
    for path, entry in adapters[0].items():
        for other in (adapter[path] for adapter in adapters):
            if isinstance(other, jlora.LowRank):
                if other.magnitude is not None or np.any(scale_b(other)):
                    return False
            elif not np.array_equal(other.value, entry.value):  # type: ignore[union-attr]
                return False
    return True


def stack_trees(trees: Sequence[Any]) -> Any:
    """Stacks the arrays of trees of one structure on a new leading axis, by numpy, which compiles nothing."""
    return jax.tree.map(lambda *leaves: jnp.array(np.stack(leaves)), *trees)


def _fill_rank(entry: Entry, stacked: int) -> Entry:
    """Sets the ranks, which are static, to the width for all layers, so that they are equal for all adapters.

    `entry` is one of `stacked` adapters that `jlora.stack` has joined; it still has the ranks of all.
    """
    if not isinstance(entry, jlora.LowRank):
        return entry
    return dataclasses.replace(entry, ranks=(entry.scale.shape[-1],) * (len(entry.ranks) // stacked))


def _cut_entry(entry: Entry, ranks: tuple[int, ...]) -> Entry:
    if not isinstance(entry, jlora.LowRank):
        return entry
    kept = (*[slice(None)] * (entry.scale.ndim - 1), slice(max(1, *ranks)))
    return dataclasses.replace(entry, a=entry.a[kept], b=entry.b[kept], scale=entry.scale[kept], ranks=ranks)
