"""GPT-NeoX (Pythia too): rotary positions for part of each head; attention and MLP in parallel or in sequence."""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn

from jlora.models.blocks.layers import LayerNorm, dense, drop_out, scan_decoder_layers
from jlora.models.causal_lm import CausalLanguageModel
from jlora.models.families.gpt_like import MLP, FusedAttention, Shared, lookup_table, rotary, run_layers
from jlora.models.family import Family
from jlora.models.kv_cache import Cache, Slots, mark_tokens_valid, visible


class GPTNeoXForCausalLM(CausalLanguageModel):
    """`CausalLanguageModel` whose head is called embed_out in checkpoints.

    Parameters:

        gpt_neox/embed_in/embedding, final_layer_norm/{scale,bias}
        gpt_neox/layers/attention/{query_key_value,dense}/{kernel,bias}, mlp/{dense_h_to_4h,dense_4h_to_h}/{kernel,bias}
        gpt_neox/layers/{input_layernorm,post_attention_layernorm}/{scale,bias}
        lm_head/kernel (absent if the config ties it to the embedding)
    """

    def setup(self) -> None:
        self.gpt_neox = GPTNeoXModel(self.config, self.dtype, self.remat, self.attention)
        if not self.config.tie_word_embeddings:
            self.lm_head = dense(self.config, self.config.vocab_size, self.dtype, use_bias=False)

    def decoder(self) -> Any:
        return self.gpt_neox

    def embedding(self) -> Any:
        return self.gpt_neox.embed_in


class GPTNeoXModel(nn.Module):
    """The decoder: (batch, cache or None) -> (normalized last hidden states (B, T, hidden), extended cache)."""

    config: Any
    dtype: Any
    remat: bool
    attention: str

    def setup(self) -> None:
        config = self.config
        self.embed_in = lookup_table(config, config.vocab_size, config.hidden_size, self.dtype)
        self.layers = scan_decoder_layers(GPTNeoXLayer, config.num_hidden_layers, remat=self.remat)(config, self.dtype)
        self.final_layer_norm = LayerNorm(config.layer_norm_eps, self.dtype)

    def __call__(self, batch: dict[str, jax.Array], cache: Cache | None = None) -> tuple[jax.Array, Any]:
        config, cache = self.config, cache and mark_tokens_valid(cache, batch)
        share = config.rope_parameters.get("partial_rotary_factor", 1.0)
        width = int(config.hidden_size // config.num_attention_heads * share)
        turned = rotary(config, width, batch, cache, self.dtype)
        shared = Shared(visible(batch, None, cache, self.attention), cache and cache.length, turned)
        x = drop_out(self, self.embed_in(batch["input_ids"]), config.hidden_dropout)
        x, cache = run_layers(self.layers, x, shared, batch, cache)
        return self.final_layer_norm(x), cache


class GPTNeoXLayer(nn.Module):
    """One layer, as a step of a scan: (x (B, T, hidden), shared, its slots or None) -> (x, its slots)."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, shared: Shared, slots: Slots | None) -> tuple[jax.Array, Slots | None]:
        config, names = self.config, ("dense_h_to_4h", "dense_4h_to_h")
        normed = LayerNorm(config.layer_norm_eps, self.dtype, name="input_layernorm")(x)
        heads, rate = config.num_attention_heads, config.attention_dropout
        attention = FusedAttention(config, self.dtype, rate, heads, config.attention_bias, name="attention")
        mixed, slots = attention(normed, shared, slots)
        mixed = x + drop_out(self, mixed, config.hidden_dropout)
        parallel = x if config.use_parallel_residual else mixed
        normed = LayerNorm(config.layer_norm_eps, self.dtype, name="post_attention_layernorm")(parallel)
        fed = MLP(config, self.dtype, config.intermediate_size, config.hidden_act, names, name="mlp")(normed)
        return mixed + drop_out(self, fed, config.hidden_dropout), slots


FAMILY = Family(
    GPTNeoXForCausalLM,
    task="CAUSAL_LM",
    prefix="gpt_neox",
    targets=("query_key_value",),
    embedding="gpt_neox.embed_in",
    buffers=(".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"),
    old_suffixes={"embed_out.weight": "lm_head.weight"},
    stored_names={"lm_head.weight": "embed_out.weight"},
    honoured={"quantization_config": (None,)},
)
