"""`init`: makes a fresh adapter for any function; shapes follow from how the function uses its weights."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jlora.errors import JloraError
from jlora.initialization.abstract_adapter import abstract_adapter
from jlora.initialization.random_matrices import draw_factors
from jlora.lora.config import LoraConfig
from jlora.lora.dora import with_magnitude
from jlora.lora.entries import Adapter, Entry, LowRank, own_values
from jlora.lora.named_initializations import find_initialization
from jlora.tree.leaf_paths import leaves_by_path
from jlora.tree.quantized import Quantized, as_array

if TYPE_CHECKING:
    from jaxtyping import PRNGKeyArray, PyTree

InitLoraWeights = bool | str | Callable[..., Any]
"""A value of `LoraConfig.init_lora_weights`."""


def init(
    key: PRNGKeyArray,
    config: LoraConfig,
    base: PyTree,
    fn: Callable,
    *args: Any,
    allow_materialize: bool = False,
    names: Mapping[str, str] | None = None,
    **kwargs: Any,
) -> dict[str, Entry]:
    """Makes a fresh adapter; with the default initialization the adapted function equals the base's bit for bit.

    (On XLA:CPU this holds from a width of 64 on: smaller products may be fused with the sum, which rounds differently.)

    Args:
      key: draws A (and an embedding's B).
      config: which modules, and how.
      base: the first argument of `fn`, any pytree; leaves that are not arrays are ignored.
      fn, args, kwargs: the function, which is traced abstractly to find the axes over which each weight is contracted,
        looked up or convolved. Nothing is computed, and args may be ShapeDtypeStructs.
      allow_materialize: also adapt weights that go through an operation without a low-rank rule, for
        `adapt(fn, allow_materialize=True)`. Without it a warning lists such weights that the configuration matches.
      names: {path: PyTorch's name}, such as {"blocks/q/kernel": "model.layers.{}.q_proj.weight"}, if the configuration
        uses those names; as for `jlora.save_adapter`.

    Returns:
      {path: LowRank(a, b, scale) for each adapted leaf, float32; Full(value) for each leaf of `modules_to_save` and
      each trained bias; Rows(value) for an embedding if only some of its rows are trained}.

    Raises:
      TargetNotFoundError: an entry of the configuration matches no module that could be adapted, or `fn` never uses a
        matching weight.
      NoRuleError: an entry matches only modules that go through an operation without a low-rank rule.
      JloraError: the initialization has its own function (PiSSA, OLoRA, LoRA-GA, EVA, LoftQ).
    """
    _require_draw(config.init_lora_weights)
    planned = abstract_adapter(config, base, fn, *args, allow_materialize=allow_materialize, names=names, **kwargs)
    return _draw(key, planned, leaves_by_path(base), config.init_lora_weights)


def draw_default(
    key: jax.Array, config: LoraConfig, base: Any, fn: Callable, *args: Any, **kwargs: Any
) -> dict[str, Entry]:
    """Makes the adapter that `init` makes with `init_lora_weights` True, whatever it is in `config`.

    Args:
      key: draws A, and B of an embedding.
      config: which modules, ranks and alphas.
      base, fn, args, kwargs: the adapter is for `fn(base, *args, **kwargs)`, which is only traced. kwargs may also have
        `names` and `allow_materialize`, which are those of `init`.

    Returns:
      {path: entry}: all updates are zero, and `Full` and `Rows` have the base's values.

    Raises:
      TargetNotFoundError, NoRuleError: an entry of `config` matches no weight that can be adapted.
    """
    return _draw(key, abstract_adapter(config, base, fn, *args, **kwargs), leaves_by_path(base), True)


def _draw(key: jax.Array, planned: Adapter, leaves: Mapping[str, Any], start: InitLoraWeights) -> dict[str, Entry]:
    return {
        path: _fill_entry(jax.random.fold_in(key, zlib.crc32(path.encode())), start, entry, leaves[path])
        for path, entry in planned.items()
    }


def _fill_entry(key: jax.Array, start: InitLoraWeights, entry: Entry, leaf: jax.Array | Quantized) -> Entry:
    if not isinstance(entry, LowRank):
        return dataclasses.replace(entry, value=jnp.array(own_values(as_array(leaf), entry), copy=True))
    return set_magnitude(draw_factors(key, entry, start), leaf)


def set_magnitude(entry: LowRank, leaf: jax.Array | Quantized) -> LowRank:
    """Sets DoRA's magnitude (the norm of leaf + update) and `squared_norm`, if the entry has a magnitude.

    An entry without one is returned as it is.
    """
    return entry if entry.magnitude is None else with_magnitude(entry, leaf)


def _require_draw(start: InitLoraWeights) -> None:
    found = find_initialization(start)
    if found is not None and found.function != "init":
        raise JloraError(
            f"LoraConfig.init_lora_weights: expected an initialization that needs no look at the weights, found"
            f" {start!r}, which is jlora.{found.function}'s"
        )
