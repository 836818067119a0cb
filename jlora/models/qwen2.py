"""Qwen2: Llama with biases on query, key and value."""

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


class Qwen2ForCausalLM(CausalLM):
    """`CausalLM` with biases on query, key and value."""

    def kind(self) -> Kind:
        return Kind(qkv_bias=True)


MODEL = Qwen2ForCausalLM
