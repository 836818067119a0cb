"""Qwen3: Llama with normalized queries and keys."""

from __future__ import annotations

from jlora.models.families.llama_like import CausalLM, DecoderOptions
from jlora.models.family import decoder_family


class Qwen3ForCausalLM(CausalLM):
    """`CausalLM` that normalizes queries and keys head by head, with a window in the layers that the config names."""

    def kind(self) -> DecoderOptions:
        bias = self.config.attention_bias
        return DecoderOptions(qkv_bias=bias, output_bias=bias, qk_norm=True, layer_types=tuple(self.config.layer_types))


FAMILY = decoder_family(Qwen3ForCausalLM)
