"""Corrects a LoraConfig before it is saved, so that it describes the adapter's current state."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jlora.errors import JloraError
from jlora.lora.config import LoraConfig
from jlora.lora.entries import Adapter, Full, LowRank, Rows
from jlora.lora.targets import is_in_module, is_trained_whole
from jlora.lora.tied_embedding import naming_head
from jlora.peft.fitted_config import fitted_config
from jlora.peft.tensor_keys import names_of_adapted
from jlora.tree.module_names import hf_keys, is_stacked, module_names
from jlora.tree.output_heads import HEAD_NAMES


def true_config(config: LoraConfig, adapter: Adapter) -> LoraConfig:
    """Returns `config` with the fields corrected that do not describe the adapter.

    These are r, lora_alpha, their patterns and the target modules (see `fitted_config`); `use_dora`, true if the
    entries have magnitudes; `trainable_token_indices`, the rows of `Rows` entries; `ensure_weight_tying`, true if an
    entry is `tied`; and `modules_to_save`, to which the modules of `Full` entries are added, and from which names
    without one are removed. Fields that describe the adapter stay as they are written.

    Raises:
      JloraError: PEFT has no configuration that describes the adapter: only some entries have a magnitude, a layer has
        several scales, or an adapted module's bias is trained although `config.bias` does not say so.
    """
    config = fitted_config(config, adapter)
    changes = {"use_dora": _is_dora(adapter), "trainable_token_indices": _tokens(config, adapter)}
    return _tied(dataclasses.replace(config, **changes, **_whole(config, adapter)), adapter)


def _tied(config: LoraConfig, adapter: Adapter) -> LoraConfig:
    """Sets `ensure_weight_tying` if the adapter has a tied embedding, and names the head if PEFT needs that."""
    tied = {path: entry for path, entry in adapter.items() if not isinstance(entry, Rows) and entry.tied}
    config = dataclasses.replace(config, ensure_weight_tying=bool(tied))
    for entry in tied.values():
        config = naming_head(config, whole=isinstance(entry, Full))
    return config


def _is_dora(adapter: Adapter) -> bool:
    low_ranks = {path: entry for path, entry in adapter.items() if isinstance(entry, LowRank)}
    without = [path for path, entry in low_ranks.items() if entry.magnitude is None]
    if without and len(without) < len(low_ranks):
        raise JloraError(
            f"{without[0]}: expected a magnitude, as other entries have one, found none: PEFT's use_dora is for all"
            " modules or none. Save two adapters, or give it the norm of the base's weight"
        )
    return bool(low_ranks) and not without


def _whole(config: LoraConfig, adapter: Adapter) -> dict[str, Any]:
    """Returns {} if `modules_to_save` matches the adapter's Full entries, else a corrected `modules_to_save`."""
    adapted, names, missing = set(names_of_adapted(adapter)), set[str](), set[str]()
    for path, entry in adapter.items():
        if isinstance(entry, Full):
            for name in _full_names(path, entry):
                names.add(name)
                is_bias = hf_keys(path, None)[0].endswith(".bias")
                trains_bias = config.bias == "all" or (config.bias == "lora_only" and name in adapted)
                if is_trained_whole(config, name) or (is_bias and trains_bias):
                    continue
                if name in adapted:
                    raise JloraError(
                        f"{path}: found a trained bias of an adapted module, but LoraConfig.bias is"
                        f" {config.bias!r}; dataclasses.replace(config, bias='lora_only') says so"
                    )
                missing.add(name)
    kept = [end for end in config.trained_whole if any(is_in_module(end, name) for name in names)]
    if not missing and (len(kept) == len(config.trained_whole) or set(kept) & set(HEAD_NAMES)):
        return {}
    return {"modules_to_save": [*kept, *sorted(missing)]}


def _full_names(path: str, entry: Full) -> list[str]:
    if not is_stacked(path):
        return module_names(path, None)
    numbers = range(entry.value.shape[0]) if entry.layers is None else entry.layers
    names = module_names(path, max(numbers, default=-1) + 1)
    return [names[number] for number in numbers]


def _tokens(config: LoraConfig, adapter: Adapter) -> Any:
    """Returns `trainable_token_indices` as given if they match the adapter's rows, else {module: ids} of the rows."""
    rows = {module_names(path, None)[0]: list(e.indices) for path, e in adapter.items() if isinstance(e, Rows)}
    given = config.trainable_token_indices
    if not rows or given is None:
        return rows or None
    if isinstance(given, Mapping):
        ends = {name: [list(ids) for end, ids in given.items() if name.endswith(end)] for name in rows}
    else:
        ends = {name: [list(given)] for name in rows if len(rows) == 1}
    return given if all([ids] == ends.get(name) for name, ids in rows.items()) else rows
