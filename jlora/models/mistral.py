"""Mistral: Llama with a sliding window."""

from __future__ import annotations

from jlora.models.decoder import CausalLM, Kind
from jlora.models.tables import decoder_family


class MistralForCausalLM(CausalLM):
    """`CausalLM` that sees `sliding_window` tokens back."""

    def kind(self) -> Kind:
        return Kind(window=self.config.sliding_window)


FAMILY = decoder_family(MistralForCausalLM)
