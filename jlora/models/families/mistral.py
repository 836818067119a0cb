"""Mistral: Llama with a sliding window."""

from __future__ import annotations

from jlora.models.families.llama_like import CausalLM, Kind
from jlora.models.family import decoder_family


class MistralForCausalLM(CausalLM):
    """`CausalLM` that sees `sliding_window` tokens back, or all where that is null."""

    def kind(self) -> Kind:
        return Kind(layer_types=("sliding_attention",) * self.config.num_hidden_layers)


FAMILY = decoder_family(MistralForCausalLM)
