"""Gemma: Llama with scaled embeddings, and norms that store scale - 1."""

from __future__ import annotations

from jlora.models.families.llama_like import CausalLM, DecoderOptions
from jlora.models.family import decoder_family


class GemmaForCausalLM(CausalLM):
    """`CausalLM` with embeddings times the square root of the hidden size, and norms times 1 + scale."""

    def kind(self) -> DecoderOptions:
        bias = self.config.attention_bias
        return DecoderOptions(qkv_bias=bias, output_bias=bias, scaled_embedding=True, norm_offset=1.0)


FAMILY = decoder_family(GemmaForCausalLM, use_bidirectional_attention=(None, False))
