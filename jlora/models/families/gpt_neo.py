"""GPT-Neo: GPT-2 with unscaled scores and an attention window in every other layer."""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn

from jlora.errors import UnsupportedModelError
from jlora.models.blocks.layer_pattern import apply_layers
from jlora.models.blocks.layers import LayerNorm, dense, drop_out, require_length
from jlora.models.causal_lm import CausalLanguageModel
from jlora.models.families.gpt_like import MLP, SelfAttention, Shared, lookup_table
from jlora.models.family import Family
from jlora.models.kv_cache import Cache, Slots, mark_tokens_valid, store_slots, token_positions, visible


class GPTNeoForCausalLM(CausalLanguageModel):
    """`CausalLanguageModel` with global and local attention in turn, in two stacks of layers: `h_0_of_2`, `h_1_of_2`.

    Parameters:

        transformer/{wte,wpe}/embedding, ln_f/{scale,bias}
        transformer/h_0_of_2/attn/attention/{q_proj,k_proj,v_proj}/kernel, attn/attention/out_proj/{kernel,bias}
        transformer/h_0_of_2/mlp/{c_fc,c_proj}/{kernel,bias}, {ln_1,ln_2}/{scale,bias}
        lm_head/kernel (absent if the config ties it to the embedding)
    """

    def setup(self) -> None:
        self.transformer = GPTNeoModel(self.config, self.dtype, self.remat, self.attention)
        if not self.config.tie_word_embeddings:
            self.lm_head = dense(self.config, self.config.vocab_size, self.dtype, use_bias=False)


class GPTNeoModel(nn.Module):
    """The decoder: (batch, cache or None) -> (normalized last hidden states (B, T, hidden), extended cache)."""

    config: Any
    dtype: Any
    remat: bool
    attention: str

    def setup(self) -> None:
        config = self.config
        self.wte = lookup_table(config, config.vocab_size, config.hidden_size, self.dtype)
        self.wpe = lookup_table(config, config.max_position_embeddings, config.hidden_size, self.dtype)
        self.ln_f = LayerNorm(config.layer_norm_epsilon, self.dtype)

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], cache: Cache | None = None) -> tuple[jax.Array, Any]:
        config = self.config
        require_length(batch["input_ids"].shape[1], config.max_position_embeddings)
        cache = cache and mark_tokens_valid(cache, batch)
        shared = {
            layer_type: Shared(visible(batch, window, cache, self.attention), cache and cache.length)
            for layer_type, window in (("global", None), ("local", config.window_size))
        }
        x = self.wte(batch["input_ids"]) + self.wpe(token_positions(batch, cache))
        x = drop_out(self, x, config.embed_dropout)
        types, slots = attention_types(config), cache and Slots(cache.keys, cache.values)
        x, slots = apply_layers(GPTNeoBlock, (config, self.dtype), types, "h", x, shared, slots, remat=self.remat)
        return self.ln_f(x), cache and store_slots(cache, slots, batch)


class GPTNeoBlock(nn.Module):
    """One layer: (x (B, T, hidden), {layer type: Shared}, its slots or None) -> (x, its slots)."""

    config: Any
    dtype: Any
    layer_type: str

    @nn.compact
    def __call__(self, x: jax.Array, shared: dict[str, Shared], slots: Slots | None) -> tuple[jax.Array, Slots | None]:
        config, rate = self.config, self.config.resid_dropout
        inner, names = config.intermediate_size or 4 * config.hidden_size, ("c_fc", "c_proj")
        normed = LayerNorm(config.layer_norm_epsilon, self.dtype, name="ln_1")(x)
        mixed, slots = Attention(config, self.dtype, name="attn")(normed, shared[self.layer_type], slots)
        x = x + drop_out(self, mixed, rate)
        normed = LayerNorm(config.layer_norm_epsilon, self.dtype, name="ln_2")(x)
        fed = MLP(config, self.dtype, inner, config.activation_function, names, name="mlp")(normed)
        return x + drop_out(self, fed, rate), slots


class Attention(nn.Module):
    """Wraps the attention in a submodule `attention`, as in GPT-Neo's checkpoints."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, shared: Shared, slots: Slots | None) -> tuple[jax.Array, Slots | None]:
        rate = self.config.attention_dropout
        attention = SelfAttention(self.config, self.dtype, rate, output_bias=True, scale=1.0, name="attention")
        return attention(x, shared, slots)


def attention_types(config: Any) -> list[str]:
    """Returns `config.attention_layers`, the type of each layer: "global" or "local".

    Raises:
      UnsupportedModelError: the config has another type.
    """
    for layer, found in enumerate(config.attention_layers):
        if found not in ("global", "local"):
            raise UnsupportedModelError(
                f"config.json: attention_types: expected global or local; found {found!r} of layer {layer}"
            )
    return config.attention_layers


FAMILY = Family(
    GPTNeoForCausalLM,
    task="CAUSAL_LM",
    prefix="transformer",
    targets=("q_proj", "v_proj"),
    embedding="transformer.wte",
    buffers=(".attention.bias", ".attention.masked_bias"),
    honoured={"quantization_config": (None,)},
)
