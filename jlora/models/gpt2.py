"""GPT-2: the causal language model, with its dense layers stored as (in, out) under the name `weight`."""

from __future__ import annotations

from dataclasses import field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jlora.models.attention import attention
from jlora.models.cache import Cache, Slots, causal_mask, closed, empty_cache, opened, token_positions, written
from jlora.models.layers import LayerNorm, activation, drop, require_length, scan_decoder_layers
from jlora.models.tables import Family


class GPT2LMHeadModel(nn.Module):
    """Logits float32 (B, T, vocab) of a batch as `decoder.CausalLM` takes it.

    Dropout is on where `apply` is given `rngs={"dropout": key}`. Parameters are float32, the layers' stacked:

        transformer/{wte,wpe}/embedding, ln_f/{scale,bias}
        transformer/h/attn/{c_attn,c_proj}/{weight,bias}, mlp/{c_fc,c_proj}/{weight,bias}, {ln_1,ln_2}/{scale,bias}
    """

    config: Any = field(hash=False)
    dtype: Any = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        self.transformer = Transformer(self.config, self.dtype, self.remat)

    def __call__(self, batch: dict[str, jax.Array]) -> jax.Array:
        return self.logits(self.hidden(batch))

    def hidden(self, batch: dict[str, jax.Array]) -> jax.Array:
        """The normalized last hidden states (B, T, n_embd), in `dtype`."""
        return self.transformer(batch)[0]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 (..., vocab) of hidden states (..., n_embd)."""
        return self.transformer.wte.attend(hidden).astype(jnp.float32)

    def extend(self, batch: dict[str, jax.Array], cache: Cache) -> tuple[jax.Array, Cache]:
        """As `decoder.CausalLM.extend`."""
        return self.transformer(batch, cache)

    @nn.nowrap
    def empty_cache(self, batch_size: int, size: int, dtype: Any) -> Cache:
        """A cache with `size` slots a row, for `extend`."""
        config = self.config
        return empty_cache(config.n_layer, batch_size, size, config.n_head, config.n_embd // config.n_head, dtype)


class Transformer(nn.Module):
    """(The normalized last hidden states (B, T, hidden) of a batch, the cache with its tokens in it)."""

    config: Any
    dtype: Any
    remat: bool

    def setup(self) -> None:
        config = self.config
        normal = nn.initializers.normal(config.initializer_range)
        self.wte = nn.Embed(config.vocab_size, config.n_embd, dtype=self.dtype, embedding_init=normal)
        self.wpe = nn.Embed(config.n_positions, config.n_embd, dtype=self.dtype, embedding_init=normal)
        self.h = scan_decoder_layers(Block, config.n_layer, remat=self.remat)(config, self.dtype)
        self.ln_f = LayerNorm(config.layer_norm_epsilon, self.dtype)

    def __call__(self, batch: dict[str, jax.Array], cache: Cache | None = None) -> tuple[jax.Array, Any]:
        ids = batch["input_ids"]
        require_length(ids.shape[1], self.config.n_positions)
        cache = cache and opened(cache, batch)
        hidden = self.wte(ids) + self.wpe(token_positions(batch, cache))
        hidden = drop(self, hidden, self.config.embd_pdrop)
        shared = Shared(causal_mask(batch, None, cache), cache and cache.length)
        hidden, slots = self.h(hidden, shared, cache and Slots(cache.keys, cache.values))
        return self.ln_f(hidden), cache and closed(cache, slots, batch)


class Shared(NamedTuple):
    """What all layers of a call share: the mask, and the first slot that is written."""

    mask: jax.Array
    start: jax.Array | None


class Block(nn.Module):
    """One layer, as a step of a scan: (x (B, T, hidden), shared, its slots or None) -> (x, its slots)."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, shared: Shared, slots: Slots | None) -> tuple[jax.Array, Slots | None]:
        epsilon = self.config.layer_norm_epsilon
        normed = LayerNorm(epsilon, self.dtype, name="ln_1")(x)
        mixed, slots = SelfAttention(self.config, self.dtype, name="attn")(normed, shared, slots)
        x = x + mixed
        return x + MLP(self.config, self.dtype, name="mlp")(LayerNorm(epsilon, self.dtype, name="ln_2")(x)), slots


class SelfAttention(nn.Module):
    """Attention whose query, key and value are one product, (B, T, hidden)."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, shared: Shared, slots: Slots | None) -> tuple[jax.Array, Slots | None]:
        heads = (*x.shape[:-1], self.config.n_head, self.config.n_embd // self.config.n_head)
        projected = Conv1D(self.config, 3 * self.config.n_embd, self.dtype, name="c_attn")(x)
        query, key, value = (part.reshape(heads) for part in jnp.split(projected, 3, axis=-1))
        key, value, slots = written(slots, key, value, shared.start)
        dropout_key = self.make_rng("dropout") if self.has_rng("dropout") and self.config.attn_pdrop else None
        mixed = attention(query, key, value, shared.mask, dropout_key=dropout_key, dropout_rate=self.config.attn_pdrop)
        mixed = Conv1D(self.config, self.config.n_embd, self.dtype, name="c_proj")(mixed.reshape(x.shape))
        return drop(self, mixed, self.config.resid_pdrop), slots


class MLP(nn.Module):
    """c_proj(act(c_fc(x))), (B, T, hidden)."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inner = self.config.n_inner or 4 * self.config.n_embd
        act = activation(self.config.activation_function)
        hidden = act(Conv1D(self.config, inner, self.dtype, name="c_fc")(x))
        return drop(self, Conv1D(self.config, x.shape[-1], self.dtype, name="c_proj")(hidden), self.config.resid_pdrop)


class Conv1D(nn.Module):
    """A dense layer with the parameters `weight` (in, features), as its checkpoints have it, and `bias`."""

    config: Any
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        normal = nn.initializers.normal(self.config.initializer_range)
        weight = self.param("weight", normal, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return x @ weight.astype(self.dtype) + bias.astype(self.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


FAMILY = Family(
    GPT2LMHeadModel,
    task="CAUSAL_LM",
    prefix="transformer",
    targets=("c_attn",),
    buffers=(".attn.bias", ".attn.masked_bias", "lm_head.weight"),
    honoured={
        "add_cross_attention": (None, False),
        "reorder_and_upcast_attn": (None, False),
        "scale_attn_by_inverse_layer_idx": (None, False),
        "scale_attn_weights": (None, True),
        "tie_word_embeddings": (True,),
        "quantization_config": (None,),
    },
)
