"""Gemma 3's text model: Gemma 2 without caps, normalized queries and keys, a window in five of six layers."""

from __future__ import annotations

from typing import Any

from jlora.models.families.llama_like import CausalLM, DecoderOptions
from jlora.models.family import decoder_family


class Gemma3ForCausalLM(CausalLM):
    """`CausalLM` with Gemma 2's norms; layers with a window have their own rotary frequencies."""

    def kind(self) -> DecoderOptions:
        config: Any = self.config
        return DecoderOptions(
            qkv_bias=config.attention_bias,
            output_bias=config.attention_bias,
            qk_norm=True,
            output_norms=True,
            norm_offset=1.0,
            scaled_embedding=True,
            activation=config.hidden_activation,
            layer_types=tuple(config.layer_types),
            attention_scale=config.query_pre_attn_scalar**-0.5,
            logit_softcap=config.final_logit_softcapping,
        )


FAMILY = decoder_family(Gemma3ForCausalLM, use_bidirectional_attention=(None, False), attn_logit_softcapping=(None,))
