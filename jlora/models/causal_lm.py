"""The common interface of all causal language models: hidden states, logits, steps with a cache."""

from __future__ import annotations

from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jlora.models.kv_cache import Cache, empty_cache


class CausalLanguageModel(nn.Module):
    """Base class of causal language models: maps a batch to the next token's logits, float32 (B, T, vocab).

    The batch holds `input_ids` and `attention_mask`, int32 (B, T), and may hold `position_ids` (the default counts from
    0) and `segment_ids` (tokens see only their own segment). Dropout is active if `apply` gets `rngs={"dropout": key}`.
    Parameters are float32, those of the layers stacked on a leading axis. A family creates in `setup` what `decoder`,
    `embedding` and `head` return.

    Attributes:
      config: transformers' config of the model.
      dtype: of the computation.
      remat: whether a layer's values are computed again in the backward pass.
      attention: the name of the kernel that computes attention, as for `build`.
    """

    config: Any = field(hash=False)
    dtype: Any = jnp.float32
    remat: bool = False
    attention: str = "auto"

    def decoder(self) -> Any:
        """Returns the module (batch, cache or None) -> (hidden states (B, T, D), cache)."""
        return self.transformer

    def embedding(self) -> Any:
        """Returns the token embedding, which is also the head if the config ties them."""
        return self.transformer.wte

    def head(self) -> Any:
        """Returns the dense layer that computes logits, used if it is not tied to the embedding."""
        return self.lm_head

    def __call__(self, batch: dict[str, jax.Array]) -> jax.Array:
        return self.logits(self.hidden(batch))

    def hidden(self, batch: dict[str, jax.Array]) -> jax.Array:
        """Computes the normalized last hidden states (B, T, D), in `dtype`."""
        return self.decoder()(batch)[0]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Computes logits, float32 (..., vocab), from hidden states (..., D)."""
        head = self.embedding().attend if self.config.tie_word_embeddings else self.head()
        return head(hidden).astype(jnp.float32)

    def extend(self, batch: dict[str, jax.Array], cache: Cache) -> tuple[jax.Array, Cache]:
        """Runs tokens that follow those in the cache; returns (their hidden states, the extended cache)."""
        return self.decoder()(batch, cache)

    @nn.nowrap
    def key_heads(self) -> int:
        """Returns how many heads the keys and values have."""
        return self.config.num_attention_heads

    @nn.nowrap
    def head_width(self) -> int:
        """Returns the number of features of a head."""
        return self.config.hidden_size // self.config.num_attention_heads

    @nn.nowrap
    def empty_cache(self, batch_size: int, size: int, dtype: Any) -> Cache:
        """Makes a cache with `size` slots per row, for `extend`."""
        return empty_cache(self.config.num_hidden_layers, batch_size, size, self.key_heads(), self.head_width(), dtype)
