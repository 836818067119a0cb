"""`Bank`: the adapters of one base, each in a slot of arrays whose shapes do not change when one comes or goes."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jlora.errors import JloraError
from jlora.initialization.abstract_adapter import abstract_adapter
from jlora.lora.config import LoraConfig
from jlora.lora.dora import with_magnitude
from jlora.lora.entries import Entry, Full, LowRank, own_values
from jlora.tree.leaf_paths import leaves_by_path
from jlora.tree.quantized import as_array

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Bank:
    """Adapters of one base along a leading axis, padded to one rank.

    The axis has one place more than there are slots: the last place holds the base (zeros, or the base's own values),
    which is slot -1. A slot that holds no adapter has scales of NaN, so what is computed with it is NaN, not the base's
    answer.

    Attributes:
      entries: {path: LowRank or Full}, arrays (slots + 1, ...).
      ranks: {path: int32 (slots + 1, layers)}, the true rank of each layer; for a Full entry 1 if the adapter in the
        slot trains the leaf, else 0.
      filled: bool (slots + 1,), whether the slot holds an adapter; true for the base.
    """

    entries: dict[str, Entry]
    ranks: dict[str, Int[Array, "places layers"]]
    filled: Bool[Array, " places"]

    @property
    def slots(self) -> int:
        """The number of slots for adapters."""
        return self.filled.shape[0] - 1


def make_bank(
    base: PyTree,
    fn: Callable,
    *args: Any,
    slots: int,
    max_rank: int,
    targets: str | Sequence[str] = "all-linear",
    modules_to_save: Sequence[str] = (),
    use_dora: bool = False,
    dropout: float = 0.0,
    **kwargs: Any,
) -> Bank:
    """Makes a bank of empty slots for adapters of `base`.

    Args:
      base, fn, args, kwargs: the function that the adapters are for, and its arguments, as for `jlora.init`.
      slots: how many adapters the bank holds.
      max_rank: the largest rank that an adapter may have.
      targets: `LoraConfig.target_modules`: every module that one of the adapters may adapt.
      modules_to_save: modules that an adapter may replace in full, such as a classifier's head. A slot whose adapter
        does not replace one has the base's values.
      use_dora: true if every adapter has DoRA's magnitudes; false if none has.
      dropout: rate for the inputs of all adapters while they are trained.

    Raises:
      TargetNotFoundError, NoRuleError: as for `jlora.init`.
      JloraError: fewer slots than 1.
    """
    if slots < 1:
        raise JloraError(f"make_bank: slots: expected 1 or more, found {slots}")
    config = LoraConfig(
        r=max_rank,
        lora_dropout=dropout,
        target_modules=targets,
        modules_to_save=tuple(modules_to_save),
        use_dora=use_dora,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is above the smaller side")  # small layers need fewer components
        planned = abstract_adapter(config, base, fn, *args, **kwargs)
    leaves = leaves_by_path(base)
    entries = {path: _empty(entry, leaves[path], slots) for path, entry in planned.items()}
    counts = {path: len(entry.ranks) if isinstance(entry, LowRank) else 1 for path, entry in planned.items()}
    ranks = {path: jnp.zeros((slots + 1, count), jnp.int32) for path, count in counts.items()}
    return Bank(entries, ranks, jnp.arange(slots + 1) == slots)


def _empty(entry: Entry, leaf: Any, slots: int) -> Entry:
    """Makes the arrays of one path: NaN scales in all slots, and the base's in the place after them."""
    if isinstance(entry, Full):
        own = jnp.asarray(own_values(as_array(leaf), entry), entry.value.dtype)
        return dataclasses.replace(entry, value=jnp.repeat(own[None], slots + 1, axis=0))
    assert isinstance(entry, LowRank)
    zeros: LowRank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), entry)
    if entry.magnitude is not None:
        zeros = with_magnitude(zeros, leaf)
    places: LowRank = jax.tree.map(lambda x: jnp.repeat(x[None], slots + 1, axis=0), zeros)
    return dataclasses.replace(places, scale=places.scale.at[:slots].set(jnp.nan))
