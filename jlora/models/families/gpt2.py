"""GPT-2: the causal language model, with its dense layers stored as (in, out) under the name `weight`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jlora.models.blocks.layers import (
    Dense,
    LayerNorm,
    activation,
    dense,
    drop_out,
    normal,
    require_length,
    scan_decoder_layers,
)
from jlora.models.causal_lm import CausalLanguageModel
from jlora.models.families.gpt_like import Shared, attend, lookup_table, run_layers
from jlora.models.family import Family
from jlora.models.kv_cache import Cache, Slots, mark_tokens_valid, token_positions, visible


class GPT2LMHeadModel(CausalLanguageModel):
    """`CausalLanguageModel` whose layers store their kernels as (in, out).

    Parameters:

        transformer/{wte,wpe}/embedding, ln_f/{scale,bias}
        transformer/h/attn/{c_attn,c_proj}/{weight,bias}, mlp/{c_fc,c_proj}/{weight,bias}, {ln_1,ln_2}/{scale,bias}
        lm_head/kernel (absent if the config ties it to the embedding)
    """

    def setup(self) -> None:
        self.transformer = GPT2Model(self.config, self.dtype, self.remat, self.attention)
        if not self.config.tie_word_embeddings:
            self.lm_head = dense(self.config, self.config.vocab_size, self.dtype, use_bias=False)


class GPT2Model(nn.Module):
    """The decoder: (batch, cache or None) -> (normalized last hidden states (B, T, hidden), extended cache)."""

    config: Any
    dtype: Any
    remat: bool
    attention: str

    def setup(self) -> None:
        config = self.config
        self.wte = lookup_table(config, config.vocab_size, config.n_embd, self.dtype)
        self.wpe = lookup_table(config, config.n_positions, config.n_embd, self.dtype)
        self.h = scan_decoder_layers(GPT2Block, config.n_layer, remat=self.remat)(config, self.dtype)
        self.ln_f = LayerNorm(config.layer_norm_epsilon, self.dtype)

    def __call__(self, batch: dict[str, jax.Array], cache: Cache | None = None) -> tuple[jax.Array, Any]:
        require_length(batch["input_ids"].shape[1], self.config.n_positions)
        cache = cache and mark_tokens_valid(cache, batch)
        x = self.wte(batch["input_ids"]) + self.wpe(token_positions(batch, cache))
        x = drop_out(self, x, self.config.embd_pdrop)
        shared = Shared(visible(batch, None, cache, self.attention), cache and cache.length)
        (x, _), cache = run_layers(self.h, (x, jnp.float32(1)), shared, batch, cache)
        return self.ln_f(x), cache


class GPT2Block(nn.Module):
    """One layer, as a step of a scan: ((x (B, T, hidden), its number), shared, slots) -> ((x, next number), slots)."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, carry: Any, shared: Shared, slots: Slots | None) -> tuple[Any, Slots | None]:
        x, number = carry
        epsilon = self.config.layer_norm_epsilon
        normed = LayerNorm(epsilon, self.dtype, name="ln_1")(x)
        mixed, slots = GPT2Attention(self.config, self.dtype, name="attn")(normed, number, shared, slots)
        x = x + mixed
        x = x + GPT2MLP(self.config, self.dtype, name="mlp")(LayerNorm(epsilon, self.dtype, name="ln_2")(x))
        return (x, number + 1), slots


class GPT2Attention(nn.Module):
    """Attention that computes query, key and value in one product: (B, T, hidden) to the same."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, number: jax.Array, shared: Shared, slots: Slots | None
    ) -> tuple[jax.Array, Slots | None]:
        config = self.config
        projected = conv1d(config, 3 * config.n_embd, self.dtype, "c_attn")(x)
        parts = jnp.split(projected, 3, axis=-1)
        query, key, value = (part.reshape(*x.shape[:-1], config.n_head, -1) for part in parts)
        scale: Any = query.shape[-1] ** -0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            scale = scale / number
        mixed, slots = attend(self, query, key, value, shared, slots, config.attn_pdrop, scale)
        mixed = conv1d(config, config.n_embd, self.dtype, "c_proj")(mixed)
        return drop_out(self, mixed, config.resid_pdrop), slots


class GPT2MLP(nn.Module):
    """The MLP c_proj(act(c_fc(x))): (B, T, hidden) to the same."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inner = self.config.n_inner or 4 * self.config.n_embd
        act = activation(self.config.activation_function)
        hidden = act(conv1d(self.config, inner, self.dtype, "c_fc")(x))
        return drop_out(self, conv1d(self.config, x.shape[-1], self.dtype, "c_proj")(hidden), self.config.resid_pdrop)


def conv1d(config: Any, features: int, dtype: Any, name: str) -> Dense:
    """Makes a dense layer with the parameters `weight` (in, features), as in GPT-2's checkpoints, and `bias`.

    The weight is drawn by `normal(config)`; the layer computes in `dtype`, and `name` is the submodule's.
    """
    return Dense(features, dtype, normal(config), parameter="weight", name=name)


FAMILY = Family(
    GPT2LMHeadModel,
    task="CAUSAL_LM",
    prefix="transformer",
    targets=("c_attn",),
    embedding="transformer.wte",
    buffers=(".attn.bias", ".attn.masked_bias"),
    honoured={"add_cross_attention": (None, False), "quantization_config": (None,)},
)
