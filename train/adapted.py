"""A model with what is trained on it: a fresh adapter, a stored one, or one that took its start out of the base."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jlora
from jlora.abstract_adapter import abstract_adapter, abstract_stored
from jlora.base import example_batch
from jlora.peft.config_file import RECOMPUTED, read_config
from jlora.residual import init_residual
from train.sections import LoraSection

logger = logging.getLogger(__name__)

_OF_THE_FILE = (
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "bias", "modules_to_save",
    "trainable_token_indices",
)  # fmt: skip
"""Settings that a stored adapter brings with it."""


@dataclasses.dataclass(frozen=True)
class Adapted:
    """The model with what is trained on it.

    Attributes:
      model: linen module. base: its frozen tree.
      adapter: {path: LowRank | Full | Rows}: everything that is trained, with every method.
      lora: the adapter's settings; None with other methods.
      initial: where `base` gave up what the adapter started with (PiSSA, OLoRA), that start; else None.
    """

    model: Any
    base: Any
    adapter: dict[str, Any]
    lora: jlora.LoraConfig | None
    initial: dict[str, Any] | None = None


def lora_config(section: LoraSection, targets: str | list[str], task: str) -> jlora.LoraConfig:
    """The section as the library's LoraConfig.

    Args:
      targets: target_modules where the section gives none.
      task: PEFT's task_type.
    """
    fields = section.model_dump(exclude={"from_"})
    if fields["target_modules"] is None:
        fields["target_modules"] = targets
    return jlora.LoraConfig(**fields, task_type=task)


def with_adapter(section: LoraSection, lora: jlora.LoraConfig, model: Any, base: Any, key: jax.Array) -> Adapted:
    """A fresh adapter (and what it leaves of the base), or that of `lora.from`."""
    example = example_batch(model.config)
    if section.from_ is not None:
        adapter, lora = _stored(section.from_, lora, base, model)
        return Adapted(model, base, adapter, lora)
    if not section.is_residual:
        return Adapted(model, base, jlora.init(key, lora, base, model.apply, example), lora)
    residual, adapter = init_residual(key, lora, base, model.apply, example)
    initial = jax.tree.map(lambda x: jnp.array(x, copy=True), adapter)  # the trainer donates the adapter's arrays
    return Adapted(model, residual, adapter, lora, initial)


def with_abstract_adapter(section: LoraSection, lora: jlora.LoraConfig, model: Any, base: Any) -> Adapted:
    """What `with_adapter` gives, of ShapeDtypeStructs: nothing is read but the configuration of `lora.from`."""
    example = example_batch(model.config)
    if section.from_ is None:
        return Adapted(model, base, abstract_adapter(lora, base, model.apply, example), lora)
    stored = dataclasses.replace(read_config(Path(section.from_)), lora_dropout=lora.lora_dropout)
    if stored.init_lora_weights in RECOMPUTED:  # the start is added to such an adapter when it is loaded
        ranks = {pattern: 2 * rank for pattern, rank in stored.rank_pattern.items()}
        stored = dataclasses.replace(stored, r=2 * stored.r, rank_pattern=ranks)
    return Adapted(model, base, abstract_stored(section.from_, stored, base, model.apply, example), stored)


def _stored(folder: str, lora: jlora.LoraConfig, base: Any, model: Any) -> tuple[dict[str, Any], jlora.LoraConfig]:
    """The adapter of a folder and its own settings, which hold; only the dropout is the config's."""
    adapter, stored = jlora.load_adapter(folder, base, model.apply, example_batch(model.config))
    for name in _OF_THE_FILE:
        ours, theirs = getattr(lora, name), getattr(stored, name)
        if ours != theirs:
            logger.info("lora.from: the stored adapter's %s=%s is used; the config's %s is ignored", name, theirs, ours)
    return _with_dropout(adapter, lora.lora_dropout), dataclasses.replace(stored, lora_dropout=lora.lora_dropout)


def _with_dropout(adapter: dict[str, Any], rate: float) -> dict[str, Any]:
    return {
        path: dataclasses.replace(entry, dropout=rate) if isinstance(entry, jlora.LowRank) else entry
        for path, entry in adapter.items()
    }
