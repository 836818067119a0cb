"""Llama (SmolLM too): the causal language model."""

from __future__ import annotations

from typing import Any

from jlora.models.families.llama_like import CausalLM, DecoderOptions
from jlora.models.family import decoder_family


class LlamaForCausalLM(CausalLM):
    """`CausalLM` with biases if the config has them."""

    def kind(self) -> DecoderOptions:
        config: Any = self.config
        return DecoderOptions(config.attention_bias, config.attention_bias, config.mlp_bias)


FAMILY = decoder_family(LlamaForCausalLM)
