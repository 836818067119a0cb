"""Llama (SmolLM too): the causal language model."""

from __future__ import annotations

from typing import Any

from jlora.models.decoder import CausalLM, Kind

TASK = "CAUSAL_LM"
PREFIX = "model"
NEW_HEADS: tuple[str, ...] = ()
DROPPED: tuple[str, ...] = ()
BUFFERS = ("rotary_emb.inv_freq", "lm_head.weight")
OLD_SUFFIXES: dict[str, str] = {}
HONOURED: dict[str, tuple] = {
    "attention_dropout": (None, 0.0),
    "pretraining_tp": (None, 1),
    "quantization_config": (None,),
}
TOKEN_TYPES = False
TARGETS = ("q_proj", "v_proj")


class LlamaForCausalLM(CausalLM):
    """`CausalLM` with biases where the config has them."""

    def kind(self) -> Kind:
        config: Any = self.config
        return Kind(config.attention_bias, config.attention_bias, config.mlp_bias)


MODEL = LlamaForCausalLM
