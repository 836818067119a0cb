"""Building blocks of Llama and similar models: RMS norm, rotary grouped-query attention, gated MLP, tied head."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jlora.errors import UnsupportedModelError
from jlora.models.attention.attention import attention
from jlora.models.attention.visibility import Visibility
from jlora.models.blocks.layer_pattern import apply_layers
from jlora.models.blocks.layers import Embed, activation, dense, drop_out, require_length
from jlora.models.blocks.rotary import longest_row, rotary_frequencies, rotary_scale, rotate, rotation
from jlora.models.causal_lm import CausalLanguageModel
from jlora.models.kv_cache import (
    Cache,
    Slots,
    mark_tokens_valid,
    row_lengths,
    store_slots,
    token_positions,
    update_slots,
    visible,
)
from jlora.models.mesh_ops import by_heads

LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class DecoderOptions:
    """The options in which Llama-like families differ.

    Attributes:
      qkv_bias, output_bias, mlp_bias: which dense layers have a bias.
      qk_norm: whether queries and keys are normalized, each head on its own.
      fused: whether query, key and value are one product, `qkv_proj`, and gate and up another, `gate_up_proj`.
      output_norms: whether the outputs of attention and MLP are normalized too.
      norm_offset: added to the scales of all norms; with 1, checkpoints store scale - 1.
      scaled_embedding: whether the embeddings are multiplied by the square root of the hidden size.
      activation: the MLP's; None means the config's `hidden_act`.
      rotary_share: the share of a head's features that are rotated.
      layer_types: for each layer "full_attention", or "sliding_attention" if its tokens see only the last
        `sliding_window` tokens; None means full attention in all.
      attention_scale: factor of the scores; None is 1 / sqrt(head width).
      attention_softcap, logit_softcap: the scores and the logits become cap * tanh(x / cap).
      residual_dropout: the rate of dropout on the outputs of attention and MLP.
    """

    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    fused: bool = False
    output_norms: bool = False
    norm_offset: float = 0.0
    scaled_embedding: bool = False
    activation: str | None = None
    rotary_share: float = 1.0
    layer_types: tuple[str, ...] | None = None
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    residual_dropout: float = 0.0


class SharedByType(NamedTuple):
    """Values that all layers of a type share in a call.

    Attributes:
      rotation: (cos, sin) of the tokens' positions, from `rotary.rotation`.
      visibility: which keys each token sees.
      start: the first slot of the cache to write, int32 (); None without a cache.
    """

    rotation: tuple[jax.Array, jax.Array]
    visibility: Visibility
    start: jax.Array | None


class CausalLM(CausalLanguageModel):
    """`CausalLanguageModel` with Llama's structure. Parameters:

        model/embed_tokens/embedding
        model/layers/self_attn/{q_proj,k_proj,v_proj,o_proj}/kernel, {input,post_attention}_layernorm/scale
        model/layers/mlp/{gate_proj,up_proj,down_proj}/kernel
        model/norm/scale, lm_head/kernel (absent if the config ties it to the embedding)

    If types of layers alternate, `layers` are several stacks: see `layer_pattern.apply_layers`.
    """

    def kind(self) -> DecoderOptions:
        """Returns the options of this family."""
        return DecoderOptions()

    def setup(self) -> None:
        self.model = Decoder(self.config, self.dtype, self.remat, self.attention, self.kind())
        if not self.config.tie_word_embeddings:
            self.lm_head = dense(self.config, self.config.vocab_size, self.dtype, use_bias=False)

    def decoder(self) -> Any:
        return self.model

    def embedding(self) -> Any:
        return self.model.embed_tokens

    def logits(self, hidden: jax.Array) -> jax.Array:
        logits, cap = super().logits(hidden), self.kind().logit_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    @nn.nowrap
    def key_heads(self) -> int:
        return self.config.num_key_value_heads

    @nn.nowrap
    def head_width(self) -> int:
        return head_width(self.config)


class Decoder(nn.Module):
    """The decoder: (batch, cache or None) -> (normalized last hidden states (B, T, hidden), extended cache)."""

    config: Any
    dtype: Any
    remat: bool
    attention: str
    kind: DecoderOptions

    def setup(self) -> None:
        config = self.config
        normal = nn.initializers.normal(config.initializer_range)
        self.embed_tokens = Embed(config.vocab_size, config.hidden_size, dtype=self.dtype, embedding_init=normal)
        self.norm = RMSNorm(config.rms_norm_eps, self.dtype, self.kind.norm_offset)

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], cache: Cache | None = None) -> tuple[jax.Array, Any]:
        ids, types = batch["input_ids"], layer_types(self.config, self.kind)
        require_length(ids.shape[1], longest_row(self.config))
        cache = cache and mark_tokens_valid(cache, batch)
        hidden = self.embed_tokens(ids)
        if self.kind.scaled_embedding:
            hidden = hidden * jnp.asarray(self.config.hidden_size**0.5, hidden.dtype)
        shared = {layer_type: self.make_shared(batch, cache, layer_type) for layer_type in sorted(set(types))}
        slots = cache and Slots(cache.keys, cache.values)
        fields = (self.config, self.dtype, self.kind)
        hidden, slots = apply_layers(DecoderLayer, fields, types, "layers", hidden, shared, slots, remat=self.remat)
        return self.norm(hidden), cache and store_slots(cache, slots, batch)

    def make_shared(self, batch: dict[str, jax.Array], cache: Cache | None, layer_type: str) -> SharedByType:
        """Computes the values that all layers of a type share."""
        config, width = self.config, int(head_width(self.config) * self.kind.rotary_share)
        frequencies = rotary_frequencies(config, width, row_lengths(batch, cache), layer_type)
        scale = rotary_scale(config, layer_type)
        window = config.sliding_window if layer_type == "sliding_attention" else None
        return SharedByType(
            rotation(token_positions(batch, cache), frequencies, self.dtype, scale),
            visible(batch, window, cache, self.attention),
            cache and cache.length,
        )


class DecoderLayer(nn.Module):
    """One layer: (x (B, T, hidden), {layer type: Shared}, its slots or None) -> (x, its slots)."""

    config: Any
    dtype: Any
    kind: DecoderOptions
    layer_type: str

    @nn.compact
    def __call__(
        self, x: jax.Array, shared: dict[str, SharedByType], slots: Slots | None
    ) -> tuple[jax.Array, Slots | None]:
        kind, own = self.kind, shared[self.layer_type]

        def norm(name: str, x: jax.Array) -> jax.Array:
            return RMSNorm(self.config.rms_norm_eps, self.dtype, kind.norm_offset, name=name)(x)

        normed = norm("input_layernorm", x)
        mixed, slots = GroupedQueryAttention(self.config, self.dtype, kind, name="self_attn")(normed, own, slots)
        if kind.output_norms:
            mixed = norm("post_attention_layernorm", mixed)
        x = x + drop_out(self, mixed, kind.residual_dropout)
        normed = norm("pre_feedforward_layernorm" if kind.output_norms else "post_attention_layernorm", x)
        found = GatedMLP(self.config, self.dtype, kind, name="mlp")(normed)
        if kind.output_norms:
            found = norm("post_feedforward_layernorm", found)
        return x + drop_out(self, found, kind.residual_dropout), slots


class GroupedQueryAttention(nn.Module):
    """Rotary grouped-query attention: several query heads share a key and value head."""

    config: Any
    dtype: Any
    kind: DecoderOptions

    @nn.compact
    def __call__(self, x: jax.Array, shared: SharedByType, slots: Slots | None) -> tuple[jax.Array, Slots | None]:
        kind, width = self.kind, head_width(self.config)
        counts = [self.config.num_attention_heads, *[self.config.num_key_value_heads] * 2]
        names = ["qkv_proj"] if kind.fused else ["q_proj", "k_proj", "v_proj"]
        parts = project(self, x, names, [count * width for count in counts], use_bias=kind.qkv_bias)
        query, key, value = (by_heads(part.reshape(*x.shape[:-1], -1, width)) for part in parts)
        if kind.qk_norm:
            norm = partial(RMSNorm, self.config.rms_norm_eps, self.dtype, kind.norm_offset)
            query, key = norm(name="q_norm")(query), norm(name="k_norm")(key)
        query, key = rotate(query, *shared.rotation), rotate(key, *shared.rotation)
        key, value, slots = update_slots(slots, key, value, shared.start)
        mixed = attention(
            query, key, value, shared.visibility, scale=kind.attention_scale, softcap=kind.attention_softcap
        ).reshape(*x.shape[:-1], -1)
        out = dense(self.config, self.config.hidden_size, self.dtype, "o_proj", use_bias=kind.output_bias)
        return out(mixed), slots


class GatedMLP(nn.Module):
    """The MLP down(act(gate(x)) * up(x)): (B, T, hidden) to the same."""

    config: Any
    dtype: Any
    kind: DecoderOptions

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kind = self.kind
        names = ["gate_up_proj"] if kind.fused else ["gate_proj", "up_proj"]
        gate, up = project(self, x, names, [self.config.intermediate_size] * 2, use_bias=kind.mlp_bias)
        down = dense(self.config, self.config.hidden_size, self.dtype, "down_proj", use_bias=kind.mlp_bias)
        return down(activation(kind.activation or self.config.hidden_act)(gate) * up)


def project(module: Any, x: jax.Array, names: list[str], widths: list[int], *, use_bias: bool) -> list[jax.Array]:
    """Applies dense layers of `module`, within its compact `__call__`, to x (B, T, hidden): (B, T, width) each.

    With one name for several widths, one layer of their sum is applied and its result is split, in the order of
    `widths`. Otherwise there is one name for each width. `module` is a linen module with `config` and `dtype`.
    """

    def product(name: str, width: int) -> jax.Array:
        return dense(module.config, width, module.dtype, name, use_bias=use_bias)(x)

    if len(names) == 1:
        return jnp.split(product(names[0], sum(widths)), list(itertools.accumulate(widths[:-1])), axis=-1)
    return [product(name, width) for name, width in zip(names, widths, strict=True)]


class RMSNorm(nn.Module):
    """Divides x by its root mean square over the last axis, in float32, times `scale` + offset; returns `dtype`.

    `epsilon` is added to the mean square; `scale` (features,) starts as 1 - offset.
    """

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


def layer_types(config: Any, kind: DecoderOptions) -> tuple[str, ...]:
    """Returns the type of each layer: `kind.layer_types`, or if that is None "full_attention" for all.

    In the second case there are `config.num_hidden_layers`.

    Raises:
      UnsupportedModelError: a type is neither "full_attention" nor "sliding_attention".
    """
    types = kind.layer_types or (LAYER_TYPES[0],) * config.num_hidden_layers
    for layer, found in enumerate(types):
        if found not in LAYER_TYPES:
            expected = " or ".join(LAYER_TYPES)
            raise UnsupportedModelError(
                f"config.json: layer_types: expected {expected}; found {found!r} of layer {layer}"
            )
    return types


def head_width(config: Any) -> int:
    """Returns the features of an attention head: `head_dim`, or `hidden_size // num_attention_heads` without one.

    A `head_dim` of None or 0 counts as missing.
    """
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
