"""GPT-J: attention and MLP in parallel after one norm, rotary positions of adjacent features."""

from __future__ import annotations

from typing import Any

import jax
from flax import linen as nn

from jlora.models.blocks.layers import LayerNorm, dense, drop_out, require_length, scan_decoder_layers
from jlora.models.blocks.rotary import plain_frequencies, rotation
from jlora.models.causal_lm import CausalLanguageModel
from jlora.models.families.gpt_like import MLP, SelfAttention, Shared, lookup_table, run_layers
from jlora.models.family import Family
from jlora.models.kv_cache import Cache, Slots, mark_tokens_valid, token_positions, visible


class GPTJForCausalLM(CausalLanguageModel):
    """`CausalLanguageModel` with a head that is not tied to the embedding.

    Parameters:

        transformer/wte/embedding, ln_f/{scale,bias}
        transformer/h/attn/{q_proj,k_proj,v_proj,out_proj}/kernel, mlp/{fc_in,fc_out}/{kernel,bias}, ln_1/{scale,bias}
        lm_head/{kernel,bias}
    """

    def setup(self) -> None:
        self.transformer = GPTJModel(self.config, self.dtype, self.remat, self.attention)
        self.lm_head = dense(self.config, self.config.vocab_size, self.dtype)


class GPTJModel(nn.Module):
    """The decoder: (batch, cache or None) -> (normalized last hidden states (B, T, hidden), extended cache)."""

    config: Any
    dtype: Any
    remat: bool
    attention: str

    def setup(self) -> None:
        config = self.config
        self.wte = lookup_table(config, config.vocab_size, config.n_embd, self.dtype)
        self.h = scan_decoder_layers(GPTJBlock, config.n_layer, remat=self.remat)(config, self.dtype)
        self.ln_f = LayerNorm(config.layer_norm_epsilon, self.dtype)

    def __call__(self, batch: dict[str, jax.Array], cache: Cache | None = None) -> tuple[jax.Array, Any]:
        require_length(batch["input_ids"].shape[1], self.config.n_positions)
        cache = cache and mark_tokens_valid(cache, batch)
        frequencies = plain_frequencies(10000.0, self.config.rotary_dim)
        turned = rotation(token_positions(batch, cache), frequencies, self.dtype)
        shared = Shared(visible(batch, None, cache, self.attention), cache and cache.length, turned)
        x = drop_out(self, self.wte(batch["input_ids"]), self.config.embd_pdrop)
        x, cache = run_layers(self.h, x, shared, batch, cache)
        return self.ln_f(x), cache


class GPTJBlock(nn.Module):
    """One layer, as a step of a scan: (x (B, T, hidden), shared, its slots or None) -> (x, its slots)."""

    config: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, shared: Shared, slots: Slots | None) -> tuple[jax.Array, Slots | None]:
        config = self.config
        inner, names = config.n_inner or 4 * config.n_embd, ("fc_in", "fc_out")
        normed = LayerNorm(config.layer_norm_epsilon, self.dtype, name="ln_1")(x)
        mixed, slots = SelfAttention(config, self.dtype, config.attn_pdrop, name="attn")(normed, shared, slots)
        fed = MLP(config, self.dtype, inner, config.activation_function, names, name="mlp")(normed)
        return x + drop_out(self, mixed, config.resid_pdrop) + drop_out(self, fed, config.resid_pdrop), slots


FAMILY = Family(
    GPTJForCausalLM,
    task="CAUSAL_LM",
    prefix="transformer",
    targets=("q_proj", "v_proj"),
    embedding="transformer.wte",
    buffers=(".attn.bias", ".attn.masked_bias"),
    honoured={"tie_word_embeddings": (False,), "quantization_config": (None,)},
)
