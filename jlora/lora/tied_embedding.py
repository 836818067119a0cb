"""Decides which uses of a tied embedding a configuration adapts, and how PEFT's files express it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from jlora.lora.config import LoraConfig
from jlora.lora.name_patterns import is_whole
from jlora.lora.targets import is_all_linear, is_target, is_trained_whole
from jlora.tree.output_heads import HEAD

_NAMED_SO = ("embed_tokens", HEAD)
"""PEFT ties the adapters of embedding and head only if the configuration contains one of these module names."""


def needs_own_head(config: LoraConfig, embedding: str) -> bool:
    """Returns whether this configuration needs a separate table for a head that is tied to the module `embedding`.

    It does if `target_modules` or `modules_to_save` names the embedding, such as "model.embed_tokens", or the head,
    "lm_head", without `ensure_weight_tying`. Rows of `trainable_token_indices` remain tied, as in PEFT.
    """
    return not config.ensure_weight_tying and (means(config, embedding) or means(config, HEAD))


def means(config: LoraConfig, module: str) -> bool:
    """Returns whether the configuration adapts the embedding or head `module`, or trains it in full.

    With "all-linear" only `modules_to_save` counts: it adapts neither embeddings nor heads.
    """
    return is_trained_whole(config, module) or (not is_all_linear(config) and is_target(config, module))


def with_embedding_for_head(config: LoraConfig, embedding: str) -> LoraConfig:
    """Adds the name of the embedding to a configuration with `ensure_weight_tying` that names its head, "lm_head".

    It is added to `modules_to_save` if the head is trained in full, to `target_modules` if it is adapted. Any other
    configuration is returned as it is.
    """
    if not config.ensure_weight_tying:
        return config
    if is_trained_whole(config, HEAD):
        return dataclasses.replace(config, modules_to_save=[*config.trained_whole, embedding])
    return _with_target(config, embedding) if means(config, HEAD) else config


def is_tied_in_peft(config: LoraConfig, keys: Iterable[str]) -> bool:
    """Returns whether PEFT ties the head to the trained embedding of a file with this configuration.

    It does with `ensure_weight_tying` if a name in `target_modules` or `modules_to_save` ends in the module
    `embed_tokens` or `lm_head`, if `target_modules` is a regular expression that matches one of these two words, or if
    a key contains ".lm_head.".

    Args:
      keys: of the file's tensors. PEFT's saved configuration does not name the head, but its tensors are in the file.
    """
    if not config.ensure_weight_tying:
        return False
    found = config.target_modules
    targets = [name for name in _NAMED_SO if is_whole(found, name)] if isinstance(found, str) else found or ()
    named = any(name.rpartition(".")[2] in _NAMED_SO for name in (*targets, *config.trained_whole))
    return named or any(f".{HEAD}." in key for key in keys)


def naming_head(config: LoraConfig, *, whole: bool) -> LoraConfig:
    """Adds the head's name, "lm_head", to the configuration if PEFT would not tie head and embedding without it.

    A configuration with `ensure_weight_tying` that names `lm_head` or `embed_tokens` is returned as it is.

    Args:
      whole: whether the table is trained in full: the name is then added to `modules_to_save`, else to
        `target_modules`, as an entry of the list or as another alternative of the regular expression.
    """
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
