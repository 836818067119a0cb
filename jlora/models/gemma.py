"""Gemma: Llama with scaled embeddings and norms whose scales are stored around 0."""

from __future__ import annotations

from jlora.models.decoder import CausalLM, Kind

TASK = "CAUSAL_LM"
PREFIX = "model"
NEW_HEADS: tuple[str, ...] = ()
DROPPED: tuple[str, ...] = ()
BUFFERS = ("rotary_emb.inv_freq", "lm_head.weight")
OLD_SUFFIXES: dict[str, str] = {}
HONOURED: dict[str, tuple] = {
    "attention_dropout": (None, 0.0),
    "use_bidirectional_attention": (None, False),
    "quantization_config": (None,),
}
TOKEN_TYPES = False
TARGETS = ("q_proj", "v_proj")


class GemmaForCausalLM(CausalLM):
    """`CausalLM` with embeddings times the root of the hidden size, and norms times 1 + scale."""

    def kind(self) -> Kind:
        bias = self.config.attention_bias
        return Kind(qkv_bias=bias, output_bias=bias, scaled_embedding=True, norm_offset=1.0)


MODEL = GemmaForCausalLM
