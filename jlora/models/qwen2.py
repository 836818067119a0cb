"""Qwen2: Llama with biases on query, key and value."""

from __future__ import annotations

from jlora.models.decoder import CausalLM, Kind
from jlora.models.tables import decoder_family


class Qwen2ForCausalLM(CausalLM):
    """`CausalLM` with biases on query, key and value."""

    def kind(self) -> Kind:
        return Kind(qkv_bias=True)


FAMILY = decoder_family(Qwen2ForCausalLM, use_sliding_window=(None, False))
