"""What Llama and its relatives are built from: RMS norm, rotary grouped-query attention, a gated MLP, a tied head."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jlora.models.attention import attention
from jlora.models.cache import Cache, Slots, causal_mask, closed, empty_cache, opened, token_positions, written
from jlora.models.layers import activation, dense, require_length, scan_decoder_layers
from jlora.models.rope import rotary_frequencies, rotate, rotation


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


class Shared(NamedTuple):
    """What all layers of a call share.

    Attributes:
      rotation: (cos, sin) of the tokens' positions, as `rope.rotation` gives them.
      mask: bool (B, 1, T, S), as `causal_mask` gives it.
      start: the first slot that is written, int32 (); None without a cache.
    """

    rotation: tuple[jax.Array, jax.Array]
    mask: jax.Array
    start: jax.Array | None


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

    def setup(self) -> None:
        self.model = Decoder(self.config, self.dtype, self.remat, self.kind())
        if not self.config.tie_word_embeddings:
            self.lm_head = dense(self.config, self.config.vocab_size, self.dtype, use_bias=False)

    def __call__(self, batch: dict[str, jax.Array]) -> jax.Array:
        return self.logits(self.hidden(batch))

    def hidden(self, batch: dict[str, jax.Array]) -> jax.Array:
        """The normalized last hidden states (B, T, hidden), in `dtype`."""
        return self.model(batch)[0]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 (..., vocab) of hidden states (..., hidden)."""
        tied = self.config.tie_word_embeddings
        return (self.model.embed_tokens.attend(hidden) if tied else self.lm_head(hidden)).astype(jnp.float32)

    def extend(self, batch: dict[str, jax.Array], cache: Cache) -> tuple[jax.Array, Cache]:
        """(hidden states of the batch's tokens, which follow those in the cache; the cache with them in it)."""
        return self.model(batch, cache)

    @nn.nowrap
    def empty_cache(self, batch_size: int, size: int, dtype: Any) -> Cache:
        """A cache with `size` slots a row, for `extend`."""
        config = self.config
        heads = config.num_key_value_heads
        return empty_cache(config.num_hidden_layers, batch_size, size, heads, head_width(config), dtype)


class Decoder(nn.Module):
    """(The normalized last hidden states (B, T, hidden) of a batch, the cache with its tokens in it)."""

    config: Any
    dtype: Any
    remat: bool
    kind: Kind

    def setup(self) -> None:
        config = self.config
        normal = nn.initializers.normal(config.initializer_range)
        self.embed_tokens = nn.Embed(config.vocab_size, config.hidden_size, dtype=self.dtype, embedding_init=normal)
        stack = scan_decoder_layers(DecoderLayer, config.num_hidden_layers, remat=self.remat)
        self.layers = stack(config, self.dtype, self.kind)
        self.norm = RMSNorm(config.rms_norm_eps, self.dtype, self.kind.norm_offset)

    def __call__(self, batch: dict[str, jax.Array], cache: Cache | None = None) -> tuple[jax.Array, Any]:
        ids = batch["input_ids"]
        require_length(ids.shape[1], self.config.max_position_embeddings)
        cache = cache and opened(cache, batch)
        hidden = self.embed_tokens(ids)
        if self.kind.scaled_embedding:
            hidden = hidden * jnp.asarray(self.config.hidden_size**0.5, hidden.dtype)
        hidden, slots = self.layers(hidden, self.shared(batch, cache), cache and Slots(cache.keys, cache.values))
        return self.norm(hidden), cache and closed(cache, slots, batch)

    def shared(self, batch: dict[str, jax.Array], cache: Cache | None) -> Shared:
        """What the layers share in this call."""
        frequencies = rotary_frequencies(self.config, head_width(self.config))
        turned = rotation(token_positions(batch, cache), frequencies, self.dtype)
        return Shared(turned, causal_mask(batch, self.kind.window, cache), cache and cache.length)


class DecoderLayer(nn.Module):
    """One layer, as a step of a scan: (x (B, T, hidden), shared, its slots or None) -> (x, its slots)."""

    config: Any
    dtype: Any
    kind: Kind

    @nn.compact
    def __call__(self, x: jax.Array, shared: Shared, slots: Slots | None) -> tuple[jax.Array, Slots | None]:
        norm = partial(RMSNorm, self.config.rms_norm_eps, self.dtype, self.kind.norm_offset)
        normed = norm(name="input_layernorm")(x)
        mixed, slots = SelfAttention(self.config, self.dtype, self.kind, name="self_attn")(normed, shared, slots)
        x = x + mixed
        normed = norm(name="post_attention_layernorm")(x)
        return x + GatedMLP(self.config, self.dtype, self.kind, name="mlp")(normed), slots


class SelfAttention(nn.Module):
    """Rotary attention in which several query heads share a key and value head."""

    config: Any
    dtype: Any
    kind: Kind

    @nn.compact
    def __call__(self, x: jax.Array, shared: Shared, slots: Slots | None) -> tuple[jax.Array, Slots | None]:
        width, kind = head_width(self.config), self.kind

        def heads(name: str, count: int) -> jax.Array:
            projected = dense(self.config, count * width, self.dtype, f"{name}_proj", use_bias=kind.qkv_bias)(x)
            projected = projected.reshape(*x.shape[:-1], count, width)
            if kind.qk_norm and name != "v":
                projected = RMSNorm(self.config.rms_norm_eps, self.dtype, name=f"{name}_norm")(projected)
            return projected if name == "v" else rotate(projected, *shared.rotation)

        count = self.config.num_key_value_heads
        query, key, value = heads("q", self.config.num_attention_heads), heads("k", count), heads("v", count)
        key, value, slots = written(slots, key, value, shared.start)
        mixed = attention(query, key, value, shared.mask).reshape(*x.shape[:-1], -1)
        out = dense(self.config, self.config.hidden_size, self.dtype, "o_proj", use_bias=kind.output_bias)
        return out(mixed), slots


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
        scale = self.param("scale", start, (x.shape[-1],), jnp.float32).astype(jnp.float32) + self.offset
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + self.epsilon)
        return (x * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(self.dtype)


def head_width(config: Any) -> int:
    """Features of an attention head: `head_dim`, or the hidden size over the number of heads."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
