"""Warns of what `adapter_config.json` has and the adapter does not use: unknown fields, names that match nothing."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jlora.lora.config import LoraConfig
from jlora.lora.targets import is_in_module, pattern_value
from jlora.peft.config_file import unknown_fields
from jlora.tree.output_heads import HEAD_NAMES

logger = logging.getLogger("jlora")


def warn_of_unused(
    fields: Mapping[str, Any], config: LoraConfig, adapted: Collection[str], modules: Collection[str], file: Path
) -> None:
    """Warns, as PEFT ignores them silently, of fields and names that have no effect on the adapter.

    Args:
      fields: PEFT's fields, as `file` has them.
      config: the configuration made of them.
      adapted: names of the adapted modules, which `rank_pattern` and `alpha_pattern` are for.
      modules: names of all modules, which `modules_to_save` is for.
    """
    if unknown := unknown_fields(fields):
        logger.warning(
            "%s: fields that jlora does not know and ignores: %s. If a newer PEFT wrote them, they may change what the"
            " adapter computes: compare a few outputs",
            file,
            reprlib.repr(unknown)[1:-1].replace("'", ""),
        )
    for field in ("rank_pattern", "alpha_pattern"):
        for pattern in getattr(config, field):
            if not any(pattern_value({pattern: True}, name, False) for name in adapted):
                logger.warning("%s: %s: %r matches no adapted module, and is ignored", file, field, pattern)
    for entry in _unused_whole(config, modules):
        logger.warning("%s: modules_to_save: %r matches no module of the base, and is ignored", file, entry)


def _unused_whole(config: LoraConfig, modules: Collection[str]) -> list[str]:
    """Returns the entries of modules_to_save that name nothing; PEFT lists both heads for every classifier."""
    entries = config.modules_to_save or ()
    used = [entry for entry in entries if any(is_in_module(entry, name) for name in modules)]
    known = HEAD_NAMES if any(entry in HEAD_NAMES for entry in used) else ()
    return [entry for entry in entries if entry not in used and entry not in known]
