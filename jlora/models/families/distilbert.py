"""DistilBERT with a sequence classification head."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jlora.models.attention.attention import attention
from jlora.models.attention.visibility import Visibility, mask_visibility
from jlora.models.blocks.layers import (
    LayerNorm,
    activation,
    dense,
    drop_out,
    embedding,
    require_length,
    scan_layers,
)
from jlora.models.families import bert
from jlora.models.family import Family

if TYPE_CHECKING:
    from transformers import DistilBertConfig

_EPSILON = 1e-12


class DistilBertForSequenceClassification(nn.Module):
    """Maps a batch to logits, float32 (B, num_labels).

    The batch holds `input_ids` and `attention_mask`, int32 (B, T). Dropout is active if `apply` gets
    `rngs={"dropout": key}`. Parameters are float32, those of the layers stacked on a leading axis:

        distilbert/embeddings/{word,position}_embeddings/embedding, LayerNorm/{scale,bias}
        distilbert/transformer/layer/attention/{q,k,v,out}_lin/{kernel,bias}
        distilbert/transformer/layer/{ffn/{lin1,lin2}/{kernel,bias},{sa,output}_layer_norm/{scale,bias}}
        pre_classifier/{kernel,bias}, classifier/{kernel,bias}
    """

    config: DistilBertConfig = field(hash=False)
    dtype: Any = jnp.float32
    remat: bool = False
    attention: str = "auto"

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array]) -> jax.Array:
        config = self.config
        x = DistilBertModel(config, self.dtype, self.remat, self.attention, name="distilbert")(batch)[:, 0]
        x = jax.nn.relu(dense(config, config.dim, self.dtype, "pre_classifier")(x))
        x = drop_out(self, x, config.seq_classif_dropout)
        return dense(config, config.num_labels, self.dtype, "classifier")(x).astype(jnp.float32)


FAMILY = Family(
    DistilBertForSequenceClassification,
    task="SEQ_CLS",
    prefix="distilbert",
    targets=("q_lin", "v_lin"),
    new_heads=("pre_classifier.", "classifier."),
    dropped=("vocab_transform.", "vocab_layer_norm.", "vocab_projector.", "qa_outputs."),
    buffers=("distilbert.embeddings.position_ids",),
    old_suffixes=bert.FAMILY.old_suffixes,
    honoured={
        "sinusoidal_pos_embds": (None, False),
        "pruned_heads": (None, {}),
        "quantization_config": (None,),
    },
)


class DistilBertModel(nn.Module):
    """Maps a batch to the last layer's output (B, T, dim)."""

    config: DistilBertConfig
    dtype: Any
    remat: bool
    attention: str

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array]) -> jax.Array:
        hidden = Embeddings(self.config, self.dtype, name="embeddings")(batch["input_ids"])
        visibility = mask_visibility(batch["attention_mask"], self.attention)
        return Transformer(self.config, self.dtype, self.remat, self.attention, name="transformer")(hidden, visibility)


class Embeddings(nn.Module):
    """Token and position embeddings of ids (B, T), normalized: (B, T, dim)."""

    config: DistilBertConfig
    dtype: Any

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        config = self.config
        require_length(ids.shape[1], config.max_position_embeddings)
        words = embedding(config, config.vocab_size, config.dim, "word_embeddings", padding_row=config.pad_token_id)
        places = embedding(config, config.max_position_embeddings, config.dim, "position_embeddings")
        x = words(ids) + places(jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32)[None, :], ids.shape))
        return drop_out(self, LayerNorm(_EPSILON, self.dtype, name="LayerNorm")(x), config.dropout)


class Transformer(nn.Module):
    """Applies all layers: (hidden (B, T, dim), visibility) -> hidden."""

    config: DistilBertConfig
    dtype: Any
    remat: bool
    attention: str

    @nn.compact
    def __call__(self, hidden: jax.Array, visibility: Visibility) -> jax.Array:
        layers = scan_layers(TransformerBlock, self.config.n_layers, remat=self.remat)
        return layers(self.config, self.dtype, name="layer")(hidden, visibility)[0]


class TransformerBlock(nn.Module):
    """One layer, as a step of a scan: (hidden (B, T, dim), visibility) -> (hidden, None)."""

    config: DistilBertConfig
    dtype: Any

    @nn.compact
    def __call__(self, hidden: jax.Array, visibility: Visibility) -> tuple[jax.Array, None]:
        mixed = DistilBertSelfAttention(self.config, self.dtype, name="attention")(hidden, visibility)
        hidden = LayerNorm(_EPSILON, self.dtype, name="sa_layer_norm")(mixed + hidden)
        inner = FFN(self.config, self.dtype, name="ffn")(hidden)
        return LayerNorm(_EPSILON, self.dtype, name="output_layer_norm")(inner + hidden), None


class DistilBertSelfAttention(nn.Module):
    """Self-attention with its output projection; (B, T, dim) to the same."""

    config: DistilBertConfig
    dtype: Any

    @nn.compact
    def __call__(self, hidden: jax.Array, visibility: Visibility) -> jax.Array:
        config = self.config
        heads = (*hidden.shape[:-1], config.n_heads, config.dim // config.n_heads)
        query, key, value = (
            dense(config, config.dim, self.dtype, name)(hidden).reshape(heads) for name in ("q_lin", "k_lin", "v_lin")
        )
        dropout_key = self.make_rng("dropout") if self.has_rng("dropout") else None
        mixed = attention(query, key, value, visibility, dropout_key=dropout_key, dropout_rate=config.attention_dropout)
        return dense(config, config.dim, self.dtype, "out_lin")(mixed.reshape(hidden.shape))


class FFN(nn.Module):
    """The feed-forward block, with dropout at its end: (B, T, dim) to the same."""

    config: DistilBertConfig
    dtype: Any

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        config = self.config
        x = activation(config.activation)(dense(config, config.hidden_dim, self.dtype, "lin1")(hidden))
        return drop_out(self, dense(config, config.dim, self.dtype, "lin2")(x), config.dropout)
