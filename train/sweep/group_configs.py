"""Which runs of a sweep train in one program: those that differ only in what the program takes as arguments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from train.config.run_config import RunConfig
from train.run.manifest import flat

_ALWAYS = {"output_dir", "train.learning_rate"}
_OF_THE_ADAPTER = {"lora.r", "lora.lora_alpha", "lora.use_rslora", "lora.init_lora_weights"}
_TARGETS = {"lora.target_modules", "lora.exclude_modules", "lora.layers_to_transform"}


def group_configs(configs: Sequence[RunConfig]) -> list[list[int]]:
    """Returns the groups of a sweep's configs, as indices, in their order.

    The members of a group have the same base, the same rows in each step and the same dropout masks: these are computed
    once for all. They may differ in the learning rate, and in the adapter's values, rank, scale and targets: ranks are
    padded to the largest, a target that a member lacks has rank 0. Runs of another seed have other rows in a step, so
    they are another group, which uses the same program.
    """
    groups: dict[str, list[int]] = {}
    for index, config in enumerate(configs):
        groups.setdefault(_shared(config, _free(config)), []).append(index)
    return list(groups.values())


def program_of(config: RunConfig) -> str:
    """Returns a text that is equal for configs whose groups train by one program, if their shapes are equal."""
    return _shared(config, _free(config) | {"seed"})


def data_of(config: RunConfig) -> str:
    """Returns a text that is equal for configs whose runs read the same rows and make the same batches of them."""
    values = flat(config)
    return _shared(config, {key for key in values if key.startswith("lora.")} | {*_ALWAYS, "method", "export.merged"})


def _shared(config: RunConfig, free: set[str]) -> str:
    return json.dumps({key: value for key, value in flat(config).items() if key not in free}, sort_keys=True)


def _free(config: RunConfig) -> set[str]:
    """Returns the keys in which the members of this config's group may differ."""
    lora: Any = config.lora
    changes_base = lora.is_residual or lora.init_lora_weights == "loftq"  # each adapter has a base of its own
    if config.method != "lora" or changes_base or lora.from_ is not None:
        return _ALWAYS
    # DoRA's magnitude and a bias are trained where a module is a target: they cannot be padded by rank.
    masked = not lora.use_dora and lora.bias != "lora_only"
    return _ALWAYS | _OF_THE_ADAPTER | (_TARGETS if masked else set())
