"""Mistral: Llama with a sliding window."""

from __future__ import annotations

from jlora.models.decoder import CausalLM, Kind

TASK = "CAUSAL_LM"
PREFIX = "model"
NEW_HEADS: tuple[str, ...] = ()
DROPPED: tuple[str, ...] = ()
BUFFERS = ("rotary_emb.inv_freq", "lm_head.weight")
OLD_SUFFIXES: dict[str, str] = {}
HONOURED: dict[str, tuple] = {"attention_dropout": (None, 0.0), "quantization_config": (None,)}
TOKEN_TYPES = False
TARGETS = ("q_proj", "v_proj")


class MistralForCausalLM(CausalLM):
    """`CausalLM` that sees `sliding_window` tokens back."""

    def kind(self) -> Kind:
        return Kind(window=self.config.sliding_window)


MODEL = MistralForCausalLM
