"""Gemma 2: Gemma with soft caps, norms also after attention and MLP, and a window in every other layer."""

from __future__ import annotations

from typing import Any

from jlora.models.families.llama_like import CausalLM, DecoderOptions
from jlora.models.family import decoder_family


class Gemma2ForCausalLM(CausalLM):
    """`CausalLM` with Gemma's embeddings and norms, and soft caps on scores and logits."""

    def kind(self) -> DecoderOptions:
        config: Any = self.config
        return DecoderOptions(
            qkv_bias=config.attention_bias,
            output_bias=config.attention_bias,
            output_norms=True,
            norm_offset=1.0,
            scaled_embedding=True,
            activation=config.hidden_activation,
            layer_types=tuple(config.layer_types),
            attention_scale=config.query_pre_attn_scalar**-0.5,
            attention_softcap=config.attn_logit_softcapping,
            logit_softcap=config.final_logit_softcapping,
        )


FAMILY = decoder_family(Gemma2ForCausalLM, use_bidirectional_attention=(None, False))
