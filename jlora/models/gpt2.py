"""GPT-2: the causal language model, with its dense layers stored as (in, out) under the name `weight`."""

from __future__ import annotations

from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jlora.models.attention import attention
from jlora.models.decoder import causal_mask
from jlora.models.layers import LayerNorm, activation, drop, require_length, scan_layers

TASK = "CAUSAL_LM"
PREFIX = "transformer"
NEW_HEADS: tuple[str, ...] = ()
DROPPED: tuple[str, ...] = ()
BUFFERS = (".attn.bias", ".attn.masked_bias", "lm_head.weight")
OLD_SUFFIXES: dict[str, str] = {}
HONOURED: dict[str, tuple] = {
    "add_cross_attention": (None, False),
    "reorder_and_upcast_attn": (None, False),
    "scale_attn_by_inverse_layer_idx": (None, False),
    "scale_attn_weights": (None, True),
    "tie_word_embeddings": (True,),
    "quantization_config": (None,),
}
TOKEN_TYPES = False
TARGETS = ("c_attn",)


class GPT2LMHeadModel(nn.Module):
    """Logits float32 (B, T, vocab) of a batch as `decoder.CausalLM` takes it.

    Dropout is on where `apply` is given `rngs={"dropout": key}`. Parameters are float32, the layers' stacked:

        transformer/{wte,wpe}/embedding, ln_f/{scale,bias}
        transformer/h/attn/{c_attn,c_proj}/{weight,bias}, mlp/{c_fc,c_proj}/{weight,bias}, {ln_1,ln_2}/{scale,bias}
    """

    config: Any = field(hash=False)
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array]) -> jax.Array:
        transformer = Transformer(self.config, self.dtype, self.remat, name="transformer")
        return transformer.attend(transformer(batch)).astype(jnp.float32)


MODEL = GPT2LMHeadModel


class Transformer(nn.Module):
    """The normalized last hidden states (B, T, hidden) of a batch."""

    config: Any
    dtype: Any
    remat: bool

    def setup(self) -> None:
        config = self.config
        normal = nn.initializers.normal(config.initializer_range)
        self.wte = nn.Embed(config.vocab_size, config.n_embd, dtype=self.dtype, embedding_init=normal)
        self.wpe = nn.Embed(config.n_positions, config.n_embd, dtype=self.dtype, embedding_init=normal)
        self.h = scan_layers(Block, config.n_layer, remat=self.remat)(config, self.dtype)
        self.ln_f = LayerNorm(config.layer_norm_epsilon, self.dtype)

    def __call__(self, batch: dict[str, jax.Array]) -> jax.Array:
        ids = batch["input_ids"]
        require_length(ids.shape[1], self.config.n_positions)
        positions = batch.get("position_ids")
        if positions is None:
            positions = jnp.arange(ids.shape[1], dtype=jnp.int32)[None]
        hidden = drop(self, self.wte(ids) + self.wpe(positions), self.config.embd_pdrop)
        hidden, _ = self.h(hidden, causal_mask(batch, None))
        return self.ln_f(hidden)

    def attend(self, hidden: jax.Array) -> jax.Array:
        """Logits (B, T, vocab) by the embedding."""
        return self.wte.attend(hidden)


class Block(nn.Module):
    """One layer, as a step of a scan: (x (B, T, hidden), mask) -> (x, None)."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
        epsilon = self.config.layer_norm_epsilon
        x = x + SelfAttention(self.config, self.dtype, name="attn")(
            LayerNorm(epsilon, self.dtype, name="ln_1")(x), mask
        )
        return x + MLP(self.config, self.dtype, name="mlp")(LayerNorm(epsilon, self.dtype, name="ln_2")(x)), None


class SelfAttention(nn.Module):
    """Attention whose query, key and value are one product, (B, T, hidden)."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        heads = (*x.shape[:-1], self.config.n_head, self.config.n_embd // self.config.n_head)
        projected = Conv1D(self.config, 3 * self.config.n_embd, self.dtype, name="c_attn")(x)
        query, key, value = (part.reshape(heads) for part in jnp.split(projected, 3, axis=-1))
        dropout_key = self.make_rng("dropout") if self.has_rng("dropout") and self.config.attn_pdrop else None
        mixed = attention(query, key, value, mask, dropout_key=dropout_key, dropout_rate=self.config.attn_pdrop)
        mixed = Conv1D(self.config, self.config.n_embd, self.dtype, name="c_proj")(mixed.reshape(x.shape))
        return drop(self, mixed, self.config.resid_pdrop)


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
