"""Qwen2: Llama with biases on query, key and value."""

from __future__ import annotations

from jlora.models.families.llama_like import CausalLM, DecoderOptions
from jlora.models.family import decoder_family


class Qwen2ForCausalLM(CausalLM):
    """`CausalLM` with biases on query, key and value, and a window in the layers that the config names."""

    def kind(self) -> DecoderOptions:
        return DecoderOptions(qkv_bias=True, layer_types=tuple(self.config.layer_types))


FAMILY = decoder_family(Qwen2ForCausalLM)
