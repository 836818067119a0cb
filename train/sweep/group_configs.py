"""Which runs of a sweep train in one program: those that differ only in what the program takes as arguments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from train.config.run_config import RunConfig
from train.run.manifest import flat
from train.task.protocol import Opened

_ALWAYS = {"output_dir", "train.learning_rate", "train.loraplus_lr_ratio"}
_OF_THE_ADAPTER = {"lora.r", "lora.lora_alpha", "lora.use_rslora", "lora.init_lora_weights"}
_TARGETS = {"lora.target_modules", "lora.exclude_modules", "lora.layers_to_transform"}
_SHAPES_BATCHES = {"data.max_length", "data.packing", "data.add_tokens"}
"""Keys of the data that also change the shape of the batches or the model: they must be equal in a group."""


def group_configs(configs: Sequence[RunConfig]) -> list[list[int]]:
    """Returns the groups of a sweep's configs, as indices, in their order.

    The members of a group have the same base and the same dropout masks: these are computed once for all. They may
    differ in the learning rates, and in the adapter's values, rank, scale and targets: ranks are padded to the largest,
    a target that a member lacks has rank 0. They may also have rows of their own; `split_by_model` then has to look at
    these. Runs of another seed have other masks and another order of rows, so they are another group, which uses the
    same program. In one batch with others they would be padded to other lengths, and their results would not be those
    of the runs alone.
    """
    groups: dict[str, list[int]] = {}
    for index, config in enumerate(configs):
        rows = {key for key in flat(config) if key.startswith("data.")} - _SHAPES_BATCHES
        groups.setdefault(_shared(config, _free(config) | rows), []).append(index)
    return list(groups.values())


def split_by_model(group: Sequence[int], opened: Sequence[Opened]) -> list[list[int]]:
    """Splits a group whose rows make models of several shapes, such as classifiers with other labels.

    Args:
      opened: what was read for each member.
    """
    kinds: list[tuple[Opened, list[int]]] = []
    for index, one in zip(group, opened, strict=True):
        alike = (found for other, found in kinds if (other.model, other.width) == (one.model, one.width))
        if (found := next(alike, None)) is not None:
            found.append(index)
        else:
            kinds.append((one, [index]))
    return [found for _, found in kinds]


def program_of(configs: Sequence[RunConfig]) -> str:
    """Returns a text that is equal for groups, given as their configs, that train by one program.

    Their members have the same rows, up to the order, which depends on the seeds.
    """
    return "\n".join(sorted({_shared(config, _free(config) | {"seed", "train.data_seed"}) for config in configs}))


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
