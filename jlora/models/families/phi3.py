"""Phi-3, Phi-3.5 and Phi-4: Llama with fused products, and positions for long rows."""

from __future__ import annotations

from typing import Any

from jlora.models.families.llama_like import CausalLM, DecoderOptions
from jlora.models.family import decoder_family


class Phi3ForCausalLM(CausalLM):
    """`CausalLM` with `qkv_proj` and `gate_up_proj`, rotary positions for part of each head, and residual dropout."""

    def kind(self) -> DecoderOptions:
        config: Any = self.config
        return DecoderOptions(
            fused=True,
            rotary_share=config.rope_parameters["partial_rotary_factor"],
            layer_types=("sliding_attention",) * config.num_hidden_layers,
            residual_dropout=config.resid_pdrop,
        )


FAMILY = decoder_family(Phi3ForCausalLM, targets=("qkv_proj",))
