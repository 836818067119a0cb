"""Gives a model its starting adapter: a fresh one, a stored one, or one with a residual base (PiSSA, OLoRA)."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

import jlora
from jlora.initialization.abstract_adapter import abstract_adapter, abstract_stored
from jlora.initialization.residual import init_residual
from jlora.initialization.trace_uses import trace_uses
from jlora.lora.adapted_model import Adapted
from jlora.lora.targets import check_other_modules, is_in_module
from jlora.peft.config_file import RECOMPUTED
from jlora.peft.folder import read_lora_config
from jlora.pretrained.load import example_batch
from jlora.tree.leaf_paths import leaves_by_path
from jlora.tree.module_names import is_stacked, module_names
from jlora.tree.output_heads import HEAD
from train.config.sections import LoraSection

logger = logging.getLogger(__name__)

_OF_THE_FILE = (
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "bias",
    "trainable_token_indices",
)  # fmt: skip
"""Settings that come from a stored adapter instead of the config."""


def lora_config(section: LoraSection, targets: str | list[str], task: str | None) -> jlora.LoraConfig:
    """Converts the section to the library's LoraConfig: the same fields, without `from`.

    Args:
      targets: target_modules if the section gives none.
      task: PEFT's task_type, or None.
    """
    fields = section.model_dump(exclude={"from_"})
    if fields["target_modules"] is None:
        fields["target_modules"] = targets
    return jlora.LoraConfig(**fields, task_type=task)


def with_adapter(
    section: LoraSection, lora: jlora.LoraConfig, model: Any, base: Any, key: jax.Array, new: Sequence[str] = ()
) -> Adapted:
    """Makes a fresh adapter (and the residual base, if it needs one), or loads that of `lora.from`.

    A fresh adapter is that of `jlora.init`, for `lora`. With a residual initialization (pissa, olora) the result's base
    is changed, and its `initial` is a copy of the adapter. A stored adapter keeps its own settings (see `settings`);
    leaves that the run also trains whole start as copies of the base's.

    Args:
      section: the config's `lora`.
      lora: the settings made from it; if `lora.from` is given, the result has those of its file.
      model: the linen module, whose `apply` is traced.
      base: its tree of weights.
      key: for the random start; not used if `lora.from` is given.
      new: names of the modules that the checkpoint does not have, as for `settings`.
    """
    if section.from_ is not None:
        return _load_stored(section, lora, model, base, new)
    example = example_batch(model.config)
    if not section.is_residual:
        return Adapted(model, base, jlora.init(key, lora, base, model.apply, example), lora)
    residual, adapter = init_residual(key, lora, base, model.apply, example)
    initial = jax.tree.map(lambda x: jnp.array(x, copy=True), adapter)  # the trainer donates the adapter's arrays
    return Adapted(model, residual, adapter, lora, initial)


def with_abstract_adapter(
    section: LoraSection, lora: jlora.LoraConfig, model: Any, base: Any, new: Sequence[str] = ()
) -> Adapted:
    """Returns the same as `with_adapter` in ShapeDtypeStructs; reads only the configuration of `lora.from`.

    The arguments are those of `with_adapter`, without `key`; `base` may have ShapeDtypeStructs. `initial` is None.
    """
    if section.from_ is None:
        return Adapted(model, base, abstract_adapter(lora, base, model.apply, example_batch(model.config)), lora)
    stored = settings(section, lora, new)
    if stored.init_lora_weights in RECOMPUTED:  # the start is added to such an adapter when it is loaded
        ranks = {pattern: 2 * rank for pattern, rank in stored.rank_pattern.items()}
        stored = dataclasses.replace(stored, r=2 * stored.r, rank_pattern=ranks)
    return Adapted(model, base, _plan_adapter(section, lora, stored, model, base), stored)


def settings(section: LoraSection, lora: jlora.LoraConfig, new: Sequence[str] = ()) -> jlora.LoraConfig:
    """Returns the settings of the run's adapter: `lora`, or if the section's `from` is given, those of that adapter.

    The stored settings get the lora_dropout of `lora`. The modules of `lora.trained_whole` (its modules_to_save, or if
    that is None the heads of its task_type) that the stored adapter does not train whole are appended to its
    modules_to_save; but if the section's modules_to_save is None, only those that are in `new`. So a head is added only
    if neither the base nor the stored adapter has it.

    Args:
      section: its `from` is a folder with adapter_config.json; its modules_to_save is read too.
      lora: the result of `lora_config` for the section; its own modules_to_save is the section's.
      new: dotted names of the modules that the checkpoint does not have.
    """
    return lora if section.from_ is None else _with_whole(section, lora, read_lora_config(section.from_), new)


def _with_whole(
    section: LoraSection, lora: jlora.LoraConfig, stored: jlora.LoraConfig, new: Sequence[str]
) -> jlora.LoraConfig:
    stored = dataclasses.replace(stored, lora_dropout=lora.lora_dropout)
    more = [end for end in lora.trained_whole if not any(is_in_module(known, end) for known in stored.trained_whole)]
    if section.modules_to_save is None:
        more = [end for end in more if any(is_in_module(end, name) for name in new)]
    if not more:
        return stored
    return dataclasses.replace(
        stored, modules_to_save=[*stored.trained_whole, *more], task_type=stored.task_type or lora.task_type
    )


def _load_stored(section: LoraSection, given: jlora.LoraConfig, model: Any, base: Any, new: Sequence[str]) -> Adapted:
    """Loads the adapter of `lora.from` with its own settings, and adds what the run also trains in full."""
    adapter, stored = jlora.load_adapter(str(section.from_), base, model.apply, example_batch(model.config))
    # null means the stored adapter's own
    chosen = ("target_modules", "exclude_modules", "layers_to_transform")
    for name in (*_OF_THE_FILE, *(name for name in chosen if getattr(section, name) is not None)):
        ours, theirs = getattr(given, name), getattr(stored, name)
        if _plain(ours) != _plain(theirs):
            logger.info("lora.from: the stored adapter's %s=%s is used; the config's %s is ignored", name, theirs, ours)
    lora = _with_whole(section, given, stored, new)
    plan, leaves = _plan_adapter(section, given, lora, model, base), leaves_by_path(base)
    if more := [path for path in plan if path not in adapter]:
        logger.info("lora.from: not in the stored adapter, so trained whole: %s", ", ".join(more))
    whole = {path: dataclasses.replace(plan[path], value=jnp.array(leaves[path], copy=True)) for path in more}
    entries = {path: (adapter | whole)[path] for path in plan}
    for path, entry in entries.items():
        if isinstance(entry, jlora.LowRank):
            entries[path] = dataclasses.replace(entry, dropout=lora.lora_dropout)
    return Adapted(model, base, entries, lora)


def _plain(setting: Any) -> Any:
    """Sorts a setting that is a list, so that two of them can be compared."""
    return sorted(setting, key=str) if isinstance(setting, (list, tuple)) else setting


def _plan_adapter(
    section: LoraSection, given: jlora.LoraConfig, lora: jlora.LoraConfig, model: Any, base: Any
) -> dict[str, Any]:
    """Plans the abstract adapter of `lora.from` with what is also trained in full.

    Raises:
      JloraError: the run's own modules_to_save matches no module; names in the stored configuration may be missing.
    """
    names = [
        name
        for path, leaf in leaves_by_path(base).items()
        for name in module_names(path, leaf.shape[0] if is_stacked(path) else None)
    ]
    check_other_modules(dataclasses.replace(given, exclude_modules=None), [*names, HEAD])  # a tied head has no leaf
    seen = trace_uses(model.apply, base, (example_batch(model.config),), {}, None)
    return abstract_stored(str(section.from_), lora, seen)
