"""Describes a family of models: its linen module, and the tables that are needed to read its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jlora.tree.output_heads import HEAD

HEAD_KEY = f"{HEAD}.weight"
"""Transformers' key of the head of every causal language model."""


@dataclass(frozen=True)
class Family:
    """A family of models, such as all of Hugging Face's `model_type` "llama".

    Attributes:
      model: the linen class, with the name of Hugging Face's.
      task: PEFT's name of the task.
      prefix: of all keys except the head's; checkpoints of a bare model lack it.
      targets: PEFT's default target_modules.
      new_heads: beginnings of keys that may be missing in a checkpoint.
      dropped: beginnings of keys that a checkpoint may have and that are not read.
      buffers: ends of keys that a checkpoint may have and that are not read.
      old_suffixes: {old: current} ends of keys.
      embedding: module of a language model's token embedding, which is also its head if the config ties them.
      stored_names: {key: key in files}, if transformers writes another key than its module's.
      honoured: {config key: the values that are supported, the usual one last}.
      token_types: whether batches hold token_type_ids.
    """

    model: Any
    task: Literal["SEQ_CLS", "CAUSAL_LM"]
    prefix: str
    targets: tuple[str, ...]
    new_heads: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    old_suffixes: Mapping[str, str] = field(default_factory=dict)
    embedding: str = ""
    stored_names: Mapping[str, str] = field(default_factory=dict)
    honoured: Mapping[str, tuple] = field(default_factory=dict)
    token_types: bool = False


def decoder_family(model: Any, *, targets: tuple[str, ...] = ("q_proj", "v_proj"), **honoured: tuple) -> Family:
    """Makes a family with Llama's keys and without dropout in the attention.

    Its task is "CAUSAL_LM", its prefix "model", its embedding "model.embed_tokens".

    Args:
      model: the linen module's class.
      targets: PEFT's default targets.
      honoured: {config key: its supported values}, in addition to `attention_dropout` (None, 0.0) and
        `quantization_config` (None,), which they may replace.
    """
    return Family(
        model,
        task="CAUSAL_LM",
        prefix="model",
        targets=targets,
        embedding="model.embed_tokens",
        buffers=("rotary_emb.inv_freq",),
        honoured={"attention_dropout": (None, 0.0), "quantization_config": (None,), **honoured},
    )
