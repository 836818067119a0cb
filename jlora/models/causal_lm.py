"""What all causal language models are to those who use them: hidden states, logits, steps with a cache."""

from __future__ import annotations

from dataclasses import field
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jlora.models.kv_cache import Cache, empty_cache


class LanguageModel(nn.Module):
    """Logits float32 (B, T, vocab) of a batch: at each place those of the next token.

    The batch holds `input_ids` and `attention_mask`, int32 (B, T), and may hold `position_ids` (counted from 0 where
    absent) and `segment_ids` (tokens see their own segment alone). Dropout is on where `apply` is given
    `rngs={"dropout": key}`. Parameters are float32, the layers' stacked on a leading axis. A family makes in `setup`
    what `decoder`, `embedding` and `head` return.
    """

    config: Any = field(hash=False)
    dtype: Any = jnp.float32
    remat: bool = False
    attention: str = "auto"

    def decoder(self) -> Any:
        """The module (batch, cache or None) -> (hidden states (B, T, D), cache)."""
        return self.transformer

    def embedding(self) -> Any:
        """The decoder's table of tokens, which is the head too where the config ties them."""
        return self.transformer.wte

    def head(self) -> Any:
        """The dense layer that gives logits where they are not tied to the embedding."""
        return self.lm_head

    def __call__(self, batch: dict[str, jax.Array]) -> jax.Array:
        return self.logits(self.hidden(batch))

    def hidden(self, batch: dict[str, jax.Array]) -> jax.Array:
        """The normalized last hidden states (B, T, D), in `dtype`."""
        return self.decoder()(batch)[0]

    def logits(self, hidden: jax.Array) -> jax.Array:
        """float32 (..., vocab) of hidden states (..., D)."""
        head = self.embedding().attend if self.config.tie_word_embeddings else self.head()
        return head(hidden).astype(jnp.float32)

    def extend(self, batch: dict[str, jax.Array], cache: Cache) -> tuple[jax.Array, Cache]:
        """(hidden states of the batch's tokens, which follow those in the cache; the cache with them in it)."""
        return self.decoder()(batch, cache)

    @nn.nowrap
    def key_heads(self) -> int:
        """How many heads the keys and values have."""
        return self.config.num_attention_heads

    @nn.nowrap
    def head_width(self) -> int:
        """Features of a head."""
        return self.config.hidden_size // self.config.num_attention_heads

    @nn.nowrap
    def empty_cache(self, batch_size: int, size: int, dtype: Any) -> Cache:
        """A cache with `size` slots a row, for `extend`."""
        return empty_cache(self.config.num_hidden_layers, batch_size, size, self.key_heads(), self.head_width(), dtype)
