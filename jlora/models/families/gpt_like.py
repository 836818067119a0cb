"""Building blocks of GPT-2 and similar models: attention, the MLP, ALiBi."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jlora.models.attention.attention import attention
from jlora.models.attention.visibility import Visibility
from jlora.models.blocks.layers import Embed, activation, dense, normal, require_length
from jlora.models.blocks.rotary import longest_row, rotary_frequencies, rotary_scale, rotate, rotate_pairs, rotation
from jlora.models.kv_cache import Cache, Slots, row_lengths, store_slots, token_positions, update_slots
from jlora.models.unstack_layers import run_unstacked, unstacked_weights


class Shared(NamedTuple):
    """Values that all layers of a call share.

    Attributes:
      visibility: which keys each token sees.
      start: the first slot of the cache to write, int32 (); None without a cache.
      rotation: (cos, sin) of the tokens' positions, from `rotary.rotation`; None without rotary positions.
      alibi: the bias of the scores, from `alibi`; None without ALiBi.
    """

    visibility: Visibility
    start: jax.Array | None
    rotation: tuple[jax.Array, jax.Array] | None = None
    alibi: jax.Array | None = None


def lookup_table(config: Any, rows: int, features: int, dtype: Any) -> Embed:
    """Makes an embedding table, float32 (rows, features), with outputs in `dtype`, drawn by `normal(config)`."""
    return Embed(rows, features, dtype=dtype, embedding_init=normal(config))


def run_layers(
    layers: Any, x: Any, shared: Shared, batch: dict[str, jax.Array], cache: Cache | None
) -> tuple[Any, Cache | None]:
    """Runs the layers and returns (their final carry, the opened `cache` with the new tokens, or None without one).

    Args:
      layers: a bound module of `scan_decoder_layers`, with stacked weights, or with those of `unstack_layers`.
      x: the carry of the first layer.
      shared: values that all layers get.
      batch: T of its `input_ids` (B, T) is added to the cache's length.
      cache: opened by `mark_tokens_valid`.
    """
    if cache is None:
        return layers(x, shared, None)[0], None
    slots = Slots(cache.keys, cache.values)
    if unstacked := unstacked_weights(layers):
        single = layers.layer(layers.config, layers.dtype, parent=None)
        x, slots = run_unstacked([(single, weights) for weights in unstacked], x, shared, slots)
    else:
        x, slots = layers(x, shared, slots)
    return x, store_slots(cache, slots, batch)


def attend(
    module: nn.Module,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    shared: Shared,
    slots: Slots | None,
    dropout_rate: float,
    scale: Any = None,
) -> tuple[jax.Array, Slots | None]:
    """Writes keys and values into the layer's slots, and computes attention.

    Args:
      module: its "dropout" key, if any, drops probabilities at `dropout_rate`.
      query: (B, T, H, D).
      key, value: (B, T, K, D).
      shared: `visibility`, `start` and `alibi` are read.
      slots: the layer's part of the cache; None without a cache.
      scale: factor of the scores; None is 1 / sqrt(D).

    Returns:
      (the attention's output (B, T, H * D), the layer's slots with the new keys and values).
    """
    key, value, slots = update_slots(slots, key, value, shared.start)
    dropout_key = module.make_rng("dropout") if dropout_rate and module.has_rng("dropout") else None
    mixed = attention(
        query,
        key,
        value,
        shared.visibility,
        scale=scale,
        key_bias=shared.alibi,
        dropout_key=dropout_key,
        dropout_rate=dropout_rate,
    )
    return mixed.reshape(*mixed.shape[:2], -1), slots


class SelfAttention(nn.Module):
    """Attention with q_proj, k_proj and v_proj: (x (B, T, hidden), shared, its slots or None) -> (x, its slots).

    Rotary positions rotate adjacent features, as in GPT-J.

    Attributes:
      config: `num_attention_heads` and `initializer_range` are read.
      dtype: of the computation.
      dropout_rate: of the attention's probabilities.
      qkv_bias, output_bias: which dense layers have a bias.
      scale: factor of the scores; None is 1 / sqrt(head width).
    """

    config: Any
    dtype: Any
    dropout_rate: float
    qkv_bias: bool = False
    output_bias: bool = False
    scale: float | None = None

    @nn.compact
    def __call__(self, x: jax.Array, shared: Shared, slots: Slots | None) -> tuple[jax.Array, Slots | None]:
        def heads(name: str) -> jax.Array:
            projected = dense(self.config, x.shape[-1], self.dtype, name, use_bias=self.qkv_bias)(x)
            return projected.reshape(*x.shape[:-1], self.config.num_attention_heads, -1)

        query, key, value = heads("q_proj"), heads("k_proj"), heads("v_proj")
        if shared.rotation is not None:
            query, key = rotate_pairs(query, *shared.rotation), rotate_pairs(key, *shared.rotation)
        mixed, slots = attend(self, query, key, value, shared, slots, self.dropout_rate, self.scale)
        return dense(self.config, x.shape[-1], self.dtype, "out_proj", use_bias=self.output_bias)(mixed), slots


class FusedAttention(nn.Module):
    """Attention with one product query_key_value: each key head's queries, then its key, then its value.

    Rotary positions pair the two halves of a head, as in Llama. Otherwise the same as `SelfAttention`.

    Attributes:
      config, dtype, dropout_rate: as in `SelfAttention`.
      key_heads: how many heads the keys and values have.
      use_bias: whether both dense layers have a bias.
    """

    config: Any
    dtype: Any
    dropout_rate: float
    key_heads: int
    use_bias: bool

    @nn.compact
    def __call__(self, x: jax.Array, shared: Shared, slots: Slots | None) -> tuple[jax.Array, Slots | None]:
        hidden, heads = x.shape[-1], self.config.num_attention_heads
        width, parts = hidden // heads, heads + 2 * self.key_heads
        fused = dense(self.config, parts * width, self.dtype, "query_key_value", use_bias=self.use_bias)(x)
        fused = fused.reshape(*x.shape[:-1], self.key_heads, -1, width)
        query, key, value = (
            fused[..., :-2, :].reshape(*x.shape[:-1], heads, width),
            fused[..., -2, :],
            fused[..., -1, :],
        )
        if shared.rotation is not None:
            query, key = rotate(query, *shared.rotation), rotate(key, *shared.rotation)
        mixed, slots = attend(self, query, key, value, shared, slots, self.dropout_rate)
        return dense(self.config, hidden, self.dtype, "dense", use_bias=self.use_bias)(mixed), slots


class MLP(nn.Module):
    """The MLP down(act(up(x))): (B, T, hidden) to the same, `inner` features in between; `names` are (up, down)."""

    config: Any
    dtype: Any
    inner: int
    act: str
    names: tuple[str, str]
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        up, down = (
            dense(self.config, features, self.dtype, name, use_bias=self.use_bias)
            for features, name in zip((self.inner, x.shape[-1]), self.names, strict=True)
        )
        return down(activation(self.act)(up(x)))


def rotary(config: Any, width: int, batch: dict[str, jax.Array], cache: Cache | None, dtype: Any) -> Any:
    """Computes (cos, sin) of the tokens' positions for the first `width` features of a head, each (B, T, 1, width / 2).

    Args:
      config: with `rope_parameters` and `max_position_embeddings`.
      batch: `input_ids` (B, T), perhaps `position_ids` (B, T).
      cache: an opened cache, or None.
      dtype: of the result.

    Raises:
      ContextLengthError: rows are longer than the model's positions (`longest_row`).
    """
    require_length(batch["input_ids"].shape[1], longest_row(config))
    frequencies = rotary_frequencies(config, width, row_lengths(batch, cache))
    return rotation(token_positions(batch, cache), frequencies, dtype, rotary_scale(config))


def alibi(batch: dict[str, jax.Array], cache: Cache | None, heads: int, dtype: Any = jnp.float32) -> jax.Array:
    """Computes float32 (B, heads, S): the position of each key times its head's slope.

    Both are first rounded to `dtype`, and multiplied in it. With a cache, a key's position is the number of valid slots
    before it. Slopes are 2^(-8 i / p) for i = 1 .. p, with p the largest power of 2 up to `heads`, then 2^(-4 i / p)
    for i = 1, 3, ...

    Args:
      batch: `input_ids` (B, T), perhaps `position_ids` (B, T), which are read only without a cache.
      cache: an opened cache, or None. S is the number of its slots, or without one the length of the batch.
    """
    if cache is None:
        positions = token_positions(batch)
    else:
        positions = jnp.maximum(jnp.cumsum(cache.valid, axis=1, dtype=jnp.int32) - 1, 0)
    slopes = jnp.asarray(_slopes(heads), dtype)
    return (slopes[None, :, None] * positions.astype(dtype)[:, None, :]).astype(jnp.float32)


def _slopes(heads: int) -> np.ndarray:
    """Returns float32 (heads,): 2^(-8 i / n) for i = 1 .. n, the largest power of 2 in `heads`, then those between."""
    power = 2 ** int(math.log2(heads))
    whole = 8 * np.arange(1, power + 1, dtype=np.float32) / power
    between = 4 * np.arange(1, 2 * (heads - power), 2, dtype=np.float32) / power
    return np.exp2(-np.concatenate([whole, between]))
