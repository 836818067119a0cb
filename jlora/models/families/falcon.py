"""Falcon: 7B (one key head, one norm), 40B and 11B (grouped keys, two norms or one), RW (ALiBi, sequential blocks)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jlora.models.blocks.layers import LayerNorm, dense, drop_out, scan_decoder_layers
from jlora.models.causal_lm import CausalLanguageModel
from jlora.models.families.gpt_like import MLP, FusedAttention, Shared, alibi, lookup_table, rotary, run_layers
from jlora.models.family import Family
from jlora.models.kv_cache import Cache, Slots, mark_tokens_valid, visible


class FalconForCausalLM(CausalLanguageModel):
    """`CausalLanguageModel` with rotary positions or ALiBi.

    Parameters:

        transformer/word_embeddings/embedding, ln_f/{scale,bias}
        transformer/h/self_attention/{query_key_value,dense}/{kernel,bias}   (biases if the config has them)
        transformer/h/mlp/{dense_h_to_4h,dense_4h_to_h}/{kernel,bias}
        transformer/h/input_layernorm/{scale,bias}                           one norm (7B, 11B)
        transformer/h/{ln_attn,ln_mlp}/{scale,bias}                          two, parallel (40B)
        transformer/h/{input_layernorm,post_attention_layernorm}/{scale,bias}   two, one after the other (RW)
        lm_head/kernel (absent if the config ties it to the embedding)
    """

    def setup(self) -> None:
        self.transformer = FalconModel(self.config, self.dtype, self.remat, self.attention)
        if not self.config.tie_word_embeddings:
            self.lm_head = dense(self.config, self.config.vocab_size, self.dtype, use_bias=False)

    def embedding(self) -> Any:
        return self.transformer.word_embeddings

    @nn.nowrap
    def key_heads(self) -> int:
        return key_heads(self.config)


class FalconModel(nn.Module):
    """The decoder: (batch, cache or None) -> (normalized last hidden states (B, T, hidden), extended cache)."""

    config: Any
    dtype: Any
    remat: bool
    attention: str

    def setup(self) -> None:
        config = self.config
        self.word_embeddings = lookup_table(config, config.vocab_size, config.hidden_size, self.dtype)
        self.h = scan_decoder_layers(FalconDecoderLayer, config.num_hidden_layers, remat=self.remat)(config, self.dtype)
        self.ln_f = LayerNorm(config.layer_norm_epsilon, self.dtype)

    def __call__(self, batch: dict[str, jax.Array], cache: Cache | None = None) -> tuple[jax.Array, Any]:
        cache = cache and mark_tokens_valid(cache, batch)
        x, cache = run_layers(
            self.h, self.word_embeddings(batch["input_ids"]), self.make_shared(batch, cache), batch, cache
        )
        return self.ln_f(x), cache

    def make_shared(self, batch: dict[str, jax.Array], cache: Cache | None) -> Shared:
        """Computes what all layers share; ALiBi is rounded and scaled as when the models were trained."""
        config, mask, start = self.config, visible(batch, None, cache, self.attention), cache and cache.length
        if config.alibi:
            slopes = alibi(batch, cache, config.num_attention_heads, jnp.bfloat16)
            return Shared(mask, start, alibi=slopes * config.head_dim**-0.5)
        return Shared(mask, start, rotary(config, config.head_dim, batch, cache, self.dtype))


class FalconDecoderLayer(nn.Module):
    """One layer, as a step of a scan: (x (B, T, hidden), shared, its slots or None) -> (x, its slots)."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, shared: Shared, slots: Slots | None) -> tuple[jax.Array, Slots | None]:
        config = self.config
        two = config.new_decoder_architecture and config.num_ln_in_parallel_attn != 1
        parallel = config.new_decoder_architecture or config.parallel_attn
        normed = self.norm("ln_attn" if two else "input_layernorm", x)
        attention = FusedAttention(config, self.dtype, 0.0, key_heads(config), config.bias, name="self_attention")
        mixed, slots = attention(normed, shared, slots)
        if two:
            normed = self.norm("ln_mlp", x)
        elif not parallel:
            x, mixed = x + mixed, None
            normed = self.norm("post_attention_layernorm", x)
        names = ("dense_h_to_4h", "dense_4h_to_h")
        fed = MLP(config, self.dtype, config.ffn_hidden_size, config.activation, names, config.bias, name="mlp")(normed)
        return x + drop_out(self, fed if mixed is None else fed + mixed, config.hidden_dropout), slots

    def norm(self, name: str, x: jax.Array) -> jax.Array:
        """Applies the layer norm called `name` to x."""
        return LayerNorm(self.config.layer_norm_epsilon, self.dtype, name=name)(x)


def key_heads(config: Any) -> int:
    """Returns how many heads the keys and values have: `num_kv_heads` in the new decoder architecture.

    In the old one it is 1 with `multi_query`, else `num_attention_heads`.
    """
    if config.new_decoder_architecture:
        return config.num_kv_heads
    return 1 if config.multi_query else config.num_attention_heads


FAMILY = Family(
    FalconForCausalLM,
    task="CAUSAL_LM",
    prefix="transformer",
    targets=("query_key_value",),
    embedding="transformer.word_embeddings",
    buffers=("rotary_emb.inv_freq",),
    honoured={"attention_dropout": (None, 0.0), "quantization_config": (None,)},
)
