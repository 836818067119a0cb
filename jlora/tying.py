"""An embedding that is the output head too: what a configuration says of the two uses, and how PEFT's files say it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from jlora.config import LoraConfig
from jlora.patterns import is_whole
from jlora.targets import is_all_linear, is_target, is_trained_whole

HEAD = "lm_head"
"""What transformers and PEFT call the module that gives a language model's logits."""
_NAMED_SO = ("embed_tokens", HEAD)
"""PEFT ties what is trained of a table where a module of one of these names is meant, and nowhere else."""


def needs_own_head(config: LoraConfig, embedding: str) -> bool:
    """Whether a head that is tied to the module `embedding` has to be a table of its own for this configuration.

    So it is where either of the two is adapted or trained whole, and `ensure_weight_tying` does not keep them one.
    Rows of `trainable_token_indices` stay tied, as PEFT has them.
    """
    return not config.ensure_weight_tying and (means(config, embedding) or means(config, HEAD))


def means(config: LoraConfig, module: str) -> bool:
    """Whether the configuration adapts the embedding or head of this name, or trains it whole."""
    return is_trained_whole(config, module) or (not is_all_linear(config) and is_target(config, module))


def with_embedding_for_head(config: LoraConfig, embedding: str) -> LoraConfig:
    """With `ensure_weight_tying`, the configuration that names the embedding where the given one names the head."""
    if not config.ensure_weight_tying:
        return config
    if is_trained_whole(config, HEAD):
        return dataclasses.replace(config, modules_to_save=[*config.trained_whole, embedding])
    return _with_target(config, embedding) if means(config, HEAD) else config


def is_tied_in_peft(config: LoraConfig, keys: Iterable[str]) -> bool:
    """Whether PEFT ties the head to what this configuration of a file trains of the embedding.

    Args:
      keys: of the file's tensors. PEFT forgets in the configuration that the head was named, but writes its tensors.
    """
    if not config.ensure_weight_tying:
        return False
    found = config.target_modules
    targets = [name for name in _NAMED_SO if is_whole(found, name)] if isinstance(found, str) else found or ()
    named = any(name.rpartition(".")[2] in _NAMED_SO for name in (*targets, *config.trained_whole))
    return named or any(f".{HEAD}." in key for key in keys)


def naming_head(config: LoraConfig, embedding: str, *, whole: bool) -> LoraConfig:
    """The configuration with the head named beside the embedding where PEFT would not tie the two otherwise."""
    if is_tied_in_peft(config, ()):
        return config
    if whole:
        return dataclasses.replace(config, modules_to_save=[*config.trained_whole, HEAD])
    return _with_target(config, HEAD)


def _with_target(config: LoraConfig, name: str) -> LoraConfig:
    found = config.target_modules
    if isinstance(found, str):
        return dataclasses.replace(config, target_modules=f"(?:{found})|{re.escape(name)}")
    return dataclasses.replace(config, target_modules=[*(found or ()), name])
