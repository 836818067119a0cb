"""Mistral: Llama with a sliding window."""

from __future__ import annotations

from jlora.models.families.llama_like import CausalLM, DecoderOptions
from jlora.models.family import decoder_family


class MistralForCausalLM(CausalLM):
    """`CausalLM` whose tokens see only the last `sliding_window` tokens, or all if that is null."""

    def kind(self) -> DecoderOptions:
        return DecoderOptions(layer_types=("sliding_attention",) * self.config.num_hidden_layers)


FAMILY = decoder_family(MistralForCausalLM)
