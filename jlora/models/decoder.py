"""What Llama and its relatives are built from: RMS norm, rotary grouped-query attention, a gated MLP, a tied head."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jlora.models.attention import attention
from jlora.models.layers import activation, dense, require_length, scan_layers
from jlora.models.rope import rotary_frequencies, rotate


@dataclass(frozen=True)
class Kind:
    """In what the families of this file differ.

    Attributes:
      qkv_bias, output_bias, mlp_bias: which dense layers have a bias.
      qk_norm: whether queries and keys are normalized, head by head.
      window: how many tokens back a token sees; None is all.
      scaled_embedding: whether the embeddings are multiplied by the root of the hidden size.
      norm_offset: added to the scales of all norms, which are stored around 0 where it is 1.
    """

    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    window: int | None = None
    scaled_embedding: bool = False
    norm_offset: float = 0.0


class CausalLM(nn.Module):
    """Logits float32 (B, T, vocab) of a batch: at each place those of the next token.

    The batch holds `input_ids` and `attention_mask`, int32 (B, T), and may hold `position_ids` (counted from 0 where
    absent) and `segment_ids` (tokens see their own segment alone). Parameters are float32, the layers' stacked on
    a leading axis:

        model/embed_tokens/embedding
        model/layers/self_attn/{q_proj,k_proj,v_proj,o_proj}/kernel, {input,post_attention}_layernorm/scale
        model/layers/mlp/{gate_proj,up_proj,down_proj}/kernel
        model/norm/scale, lm_head/kernel (absent where the config ties it to the embedding)
    """

    config: Any = field(hash=False)
    dtype: Any = jnp.float32
    remat: bool = False

    def kind(self) -> Kind:
        """In what this family differs from the others."""
        return Kind()

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array]) -> jax.Array:
        decoder = Decoder(self.config, self.dtype, self.remat, self.kind(), name="model")
        hidden = decoder(batch)
        if self.config.tie_word_embeddings:
            return decoder.attend(hidden).astype(jnp.float32)
        head = dense(self.config, self.config.vocab_size, self.dtype, "lm_head", use_bias=False)
        return head(hidden).astype(jnp.float32)


class Decoder(nn.Module):
    """The normalized last hidden states (B, T, hidden) of a batch."""

    config: Any
    dtype: Any
    remat: bool
    kind: Kind

    def setup(self) -> None:
        config = self.config
        normal = nn.initializers.normal(config.initializer_range)
        self.embed_tokens = nn.Embed(config.vocab_size, config.hidden_size, dtype=self.dtype, embedding_init=normal)
        stack = scan_layers(DecoderLayer, config.num_hidden_layers, remat=self.remat)
        self.layers = stack(config, self.dtype, self.kind)
        self.norm = RMSNorm(config.rms_norm_eps, self.dtype, self.kind.norm_offset)

    def __call__(self, batch: dict[str, jax.Array]) -> jax.Array:
        ids = batch["input_ids"]
        require_length(ids.shape[1], self.config.max_position_embeddings)
        positions = batch.get("position_ids")
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32)[None], ids.shape)
        hidden = self.embed_tokens(ids)
        if self.kind.scaled_embedding:
            hidden = hidden * jnp.asarray(self.config.hidden_size**0.5, hidden.dtype)
        hidden, _ = self.layers(hidden, positions, causal_mask(batch, self.kind.window))
        return self.norm(hidden)

    def attend(self, hidden: jax.Array) -> jax.Array:
        """Logits (B, T, vocab) by the embedding."""
        return self.embed_tokens.attend(hidden)


def causal_mask(batch: dict[str, jax.Array], window: int | None) -> jax.Array:
    """bool (B, 1, T, T): whether the token of the third axis sees that of the last.

    It sees itself and what stands before it in its row, at most `window` tokens in all, no padding
    (`attention_mask` 0), and nothing of another segment where the batch has `segment_ids`.
    """
    length = batch["input_ids"].shape[1]
    back = jnp.arange(length)[:, None] - jnp.arange(length)[None, :]
    seen = back >= 0 if window is None else (back >= 0) & (back < window)
    mask = seen[None] & batch["attention_mask"].astype(bool)[:, None, :]
    segments = batch.get("segment_ids")
    if segments is not None:
        mask = mask & (segments[:, :, None] == segments[:, None, :])
    return mask[:, None]


class DecoderLayer(nn.Module):
    """One layer, as a step of a scan: (x (B, T, hidden), positions, mask) -> (x, None)."""

    config: Any
    dtype: Any
    kind: Kind

    @nn.compact
    def __call__(self, x: jax.Array, positions: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
        norm = partial(RMSNorm, self.config.rms_norm_eps, self.dtype, self.kind.norm_offset)
        normed = norm(name="input_layernorm")(x)
        x = x + SelfAttention(self.config, self.dtype, self.kind, name="self_attn")(normed, positions, mask)
        normed = norm(name="post_attention_layernorm")(x)
        return x + GatedMLP(self.config, self.dtype, self.kind, name="mlp")(normed), None


class SelfAttention(nn.Module):
    """Rotary attention in which several query heads share a key and value head."""

    config: Any
    dtype: Any
    kind: Kind

    @nn.compact
    def __call__(self, x: jax.Array, positions: jax.Array, mask: jax.Array) -> jax.Array:
        width, kind = head_width(self.config), self.kind
        frequencies = rotary_frequencies(self.config, width)

        def heads(name: str, count: int) -> jax.Array:
            projected = dense(self.config, count * width, self.dtype, f"{name}_proj", use_bias=kind.qkv_bias)(x)
            projected = projected.reshape(*x.shape[:-1], count, width)
            if kind.qk_norm and name != "v":
                projected = RMSNorm(self.config.rms_norm_eps, self.dtype, name=f"{name}_norm")(projected)
            return projected if name == "v" else rotate(projected, positions, frequencies)

        keys = self.config.num_key_value_heads
        query, key, value = heads("q", self.config.num_attention_heads), heads("k", keys), heads("v", keys)
        mixed = attention(query, key, value, mask)
        mixed = mixed.reshape(*x.shape[:-1], -1)
        return dense(self.config, self.config.hidden_size, self.dtype, "o_proj", use_bias=kind.output_bias)(mixed)


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)), (B, T, hidden)."""

    config: Any
    dtype: Any
    kind: Kind

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def project(features: int, name: str, x: jax.Array) -> jax.Array:
            return dense(self.config, features, self.dtype, name, use_bias=self.kind.mlp_bias)(x)

        gate = activation(self.config.hidden_act)(project(self.config.intermediate_size, "gate_proj", x))
        return project(
            self.config.hidden_size, "down_proj", gate * project(self.config.intermediate_size, "up_proj", x)
        )


class RMSNorm(nn.Module):
    """x over the root of its mean square along the last axis, in float32, times `scale` + offset; in `dtype`."""

    epsilon: float
    dtype: Any
    offset: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        start = nn.initializers.constant(1.0 - self.offset)
        scale = self.param("scale", start, (x.shape[-1],), jnp.float32) + self.offset
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + self.epsilon)
        return (x * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(self.dtype)


def head_width(config: Any) -> int:
    """Features of an attention head: `head_dim`, or the hidden size over the number of heads."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
