"""What there is to know of a family of models beside its linen module: the tables that its files are read by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jlora.tree.output_heads import HEAD

HEAD_KEY = f"{HEAD}.weight"
"""The head of every causal language model, as transformers calls it."""


@dataclass(frozen=True)
class Family:
    """A family of models, such as all of Hugging Face's `model_type` "llama".

    Attributes:
      model: the linen class, named as Hugging Face's.
      task: PEFT's name of what it is for.
      prefix: of the keys without the head, which a bare model's checkpoint lacks.
      targets: PEFT's default target_modules.
      new_heads: beginnings of keys that may be missing in a checkpoint.
      dropped: beginnings of keys that may be there and are not read.
      buffers: ends of keys that may be there and are not read.
      old_suffixes: {old: today's} ends of keys.
      embedding: module of a language model's table of tokens, which is its head too where the config ties them.
      stored_names: {key: what files call it}, where transformers writes another key than its module's.
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
    """Makes a family that is built like Llama: with its keys, and no dropout in the attention."""
    return Family(
        model,
        task="CAUSAL_LM",
        prefix="model",
        targets=targets,
        embedding="model.embed_tokens",
        buffers=("rotary_emb.inv_freq",),
        honoured={"attention_dropout": (None, 0.0), "quantization_config": (None,), **honoured},
    )
