"""OPT (Galactica too): learned positions that start at row 2, norms before or after the sublayers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jlora.models.blocks.layers import (
    LayerNorm,
    activation,
    dense,
    drop_out,
    require_length,
    scan_decoder_layers,
    standardize,
)
from jlora.models.causal_lm import CausalLanguageModel
from jlora.models.families.gpt_like import SelfAttention, Shared, lookup_table, run_layers
from jlora.models.family import Family
from jlora.models.kv_cache import Cache, Slots, mark_tokens_valid, token_positions, visible

_FIRST_POSITION = 2
_EPSILON = 1e-5


class OPTForCausalLM(CausalLanguageModel):
    """`CausalLanguageModel` whose positions, if the batch has none, count the tokens that are not padding.

    Parameters:

        model/decoder/{embed_tokens,embed_positions}/embedding, final_layer_norm/{scale,bias}
        model/decoder/{project_in,project_out}/kernel   if embeddings are narrower than the layers
        model/decoder/layers/self_attn/{q_proj,k_proj,v_proj,out_proj}/{kernel,bias}, {fc1,fc2}/{kernel,bias}
        model/decoder/layers/{self_attn_layer_norm,final_layer_norm}/{scale,bias}
        lm_head/kernel (absent if the config ties it to the embedding)
    """

    def setup(self) -> None:
        self.model = Model(self.config, self.dtype, self.remat, self.attention)
        if not self.config.tie_word_embeddings:
            self.lm_head = dense(self.config, self.config.vocab_size, self.dtype, use_bias=False)

    def decoder(self) -> Any:
        return self.model.decoder

    def embedding(self) -> Any:
        return self.model.decoder.embed_tokens


class Model(nn.Module):
    """Wraps the decoder in a submodule `decoder`, as in OPT's checkpoints."""

    config: Any
    dtype: Any
    remat: bool
    attention: str

    def setup(self) -> None:
        self.decoder = OPTDecoder(self.config, self.dtype, self.remat, self.attention)


class OPTDecoder(nn.Module):
    """The decoder: (batch, cache or None) -> (normalized last hidden states (B, T, word_embed_proj_dim), cache)."""

    config: Any
    dtype: Any
    remat: bool
    attention: str

    def setup(self) -> None:
        config = self.config
        hidden, narrow = config.hidden_size, config.word_embed_proj_dim
        self.embed_tokens = lookup_table(config, config.vocab_size, narrow, self.dtype)
        self.embed_positions = lookup_table(
            config, config.max_position_embeddings + _FIRST_POSITION, hidden, self.dtype
        )
        self.project_in = dense(config, hidden, self.dtype, use_bias=False) if narrow != hidden else _same
        self.project_out = dense(config, narrow, self.dtype, use_bias=False) if narrow != hidden else _same
        self.layers = scan_decoder_layers(OPTDecoderLayer, config.num_hidden_layers, remat=self.remat)(
            config, self.dtype
        )
        normed = config.do_layer_norm_before and not config._remove_final_layer_norm
        self.final_layer_norm = norm(config, self.dtype) if normed else _same

    def __call__(self, batch: dict[str, jax.Array], cache: Cache | None = None) -> tuple[jax.Array, Any]:
        require_length(batch["input_ids"].shape[1], self.config.max_position_embeddings)
        cache = cache and mark_tokens_valid(cache, batch)
        shared = Shared(visible(batch, None, cache, self.attention), cache and cache.length)
        x = self.project_in(self.embed_tokens(batch["input_ids"]))
        x = x + self.embed_positions(_positions(batch, cache) + _FIRST_POSITION)
        x, cache = run_layers(self.layers, x, shared, batch, cache)
        return self.project_out(self.final_layer_norm(x)), cache


def _same(x: jax.Array) -> jax.Array:
    return x


def _positions(batch: dict[str, jax.Array], cache: Cache | None) -> jax.Array:
    """Returns int32 (B, T): the same as `token_positions`, but also without a cache counted from the mask."""
    if cache is not None or "position_ids" in batch:
        return token_positions(batch, cache)
    return jnp.maximum(jnp.cumsum(batch["attention_mask"], axis=1, dtype=jnp.int32) - 1, 0)


class OPTDecoderLayer(nn.Module):
    """One layer, as a step of a scan: (x (B, T, hidden), shared, its slots or None) -> (x, its slots)."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, shared: Shared, slots: Slots | None) -> tuple[jax.Array, Slots | None]:
        config, before, bias = self.config, self.config.do_layer_norm_before, self.config.enable_bias
        attention = SelfAttention(config, self.dtype, config.attention_dropout, bias, bias, name="self_attn")
        up = dense(config, config.ffn_dim, self.dtype, "fc1", use_bias=bias)
        down = dense(config, x.shape[-1], self.dtype, "fc2", use_bias=bias)
        norms = [norm(config, self.dtype, name) for name in ("self_attn_layer_norm", "final_layer_norm")]

        mixed, slots = attention(norms[0](x) if before else x, shared, slots)
        x = x + drop_out(self, mixed, config.dropout)
        x = x if before else norms[0](x)
        fed = down(activation(config.activation_function)(up(norms[1](x) if before else x)))
        x = x + drop_out(self, fed, config.dropout)
        return x if before else norms[1](x), slots


def norm(config: Any, dtype: Any, name: str | None = None) -> Callable[[jax.Array], jax.Array]:
    """Makes the layer norm called `name`, without parameters if `config.layer_norm_elementwise_affine` is false.

    It takes x (..., hidden) and normalizes the last axis in float32, with epsilon 1e-5; the result has `dtype`.
    """
    if config.layer_norm_elementwise_affine:
        return LayerNorm(_EPSILON, dtype, name=name)
    return lambda x: standardize(x.astype(jnp.float32), _EPSILON).astype(dtype)


FAMILY = Family(
    OPTForCausalLM,
    task="CAUSAL_LM",
    prefix="model",
    targets=("q_proj", "v_proj"),
    embedding="model.decoder.embed_tokens",
    honoured={"layerdrop": (None, 0.0), "quantization_config": (None,)},
)
