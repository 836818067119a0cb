"""Qwen3: Llama with normalized queries and keys."""

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
    "use_sliding_window": (None, False),
    "quantization_config": (None,),
}
TOKEN_TYPES = False
TARGETS = ("q_proj", "v_proj")


class Qwen3ForCausalLM(CausalLM):
    """`CausalLM` that normalizes queries and keys head by head."""

    def kind(self) -> Kind:
        bias = self.config.attention_bias
        return Kind(qkv_bias=bias, output_bias=bias, qk_norm=True)


MODEL = Qwen3ForCausalLM
