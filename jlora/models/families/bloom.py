"""Bloom: a norm after the embedding, and ALiBi instead of position embeddings."""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn

from jlora.models.blocks.layers import LayerNorm, dense, drop_out, scan_decoder_layers
from jlora.models.causal_lm import CausalLanguageModel
from jlora.models.families.gpt_like import MLP, FusedAttention, Shared, alibi, lookup_table, run_layers
from jlora.models.family import Family
from jlora.models.kv_cache import Cache, Slots, mark_tokens_valid, visible


class BloomForCausalLM(CausalLanguageModel):
    """`CausalLanguageModel` without position embeddings; ALiBi uses `position_ids`.

    Parameters:

        transformer/word_embeddings/embedding, {word_embeddings_layernorm,ln_f}/{scale,bias}
        transformer/h/self_attention/{query_key_value,dense}/{kernel,bias}
        transformer/h/mlp/{dense_h_to_4h,dense_4h_to_h}/{kernel,bias}
        transformer/h/{input_layernorm,post_attention_layernorm}/{scale,bias}
        lm_head/kernel (absent if the config ties it to the embedding)
    """

    def setup(self) -> None:
        self.transformer = BloomModel(self.config, self.dtype, self.remat, self.attention)
        if not self.config.tie_word_embeddings:
            self.lm_head = dense(self.config, self.config.vocab_size, self.dtype, use_bias=False)

    def embedding(self) -> Any:
        return self.transformer.word_embeddings


class BloomModel(nn.Module):
    """The decoder: (batch, cache or None) -> (normalized last hidden states (B, T, hidden), extended cache)."""

    config: Any
    dtype: Any
    remat: bool
    attention: str

    def setup(self) -> None:
        config = self.config
        self.word_embeddings = lookup_table(config, config.vocab_size, config.hidden_size, self.dtype)
        self.word_embeddings_layernorm = LayerNorm(config.layer_norm_epsilon, self.dtype)
        self.h = scan_decoder_layers(BloomBlock, config.n_layer, remat=self.remat)(config, self.dtype)
        self.ln_f = LayerNorm(config.layer_norm_epsilon, self.dtype)

    def __call__(self, batch: dict[str, jax.Array], cache: Cache | None = None) -> tuple[jax.Array, Any]:
        cache = cache and mark_tokens_valid(cache, batch)
        slopes = alibi(batch, cache, self.config.n_head)
        shared = Shared(visible(batch, None, cache, self.attention), cache and cache.length, alibi=slopes)
        x = self.word_embeddings_layernorm(self.word_embeddings(batch["input_ids"]))
        x, cache = run_layers(self.h, x, shared, batch, cache)
        return self.ln_f(x), cache


class BloomBlock(nn.Module):
    """One layer, as a step of a scan: (x (B, T, hidden), shared, its slots or None) -> (x, its slots)."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, shared: Shared, slots: Slots | None) -> tuple[jax.Array, Slots | None]:
        config = self.config
        attention = FusedAttention(
            config, self.dtype, config.attention_dropout, config.n_head, True, name="self_attention"
        )
        names = ("dense_h_to_4h", "dense_4h_to_h")
        mlp = MLP(config, self.dtype, 4 * config.hidden_size, "gelu_new", names, name="mlp")

        normed = LayerNorm(config.layer_norm_epsilon, self.dtype, name="input_layernorm")(x)
        mixed, slots = attention(normed, shared, slots)
        x = self.residual(x, normed) + drop_out(self, mixed, config.hidden_dropout)
        normed = LayerNorm(config.layer_norm_epsilon, self.dtype, name="post_attention_layernorm")(x)
        return self.residual(x, normed) + drop_out(self, mlp(normed), config.hidden_dropout), slots

    def residual(self, x: jax.Array, normed: jax.Array) -> jax.Array:
        """Returns what a sublayer's result is added to."""
        return normed if self.config.apply_residual_connection_post_layernorm else x


FAMILY = Family(
    BloomForCausalLM,
    task="CAUSAL_LM",
    prefix="transformer",
    targets=("query_key_value",),
    embedding="transformer.word_embeddings",
    honoured={"quantization_config": (None,)},
)
