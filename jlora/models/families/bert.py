"""BERT with a sequence classification head; RoBERTa uses its embeddings and layers too."""

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
from jlora.models.family import Family

if TYPE_CHECKING:
    from transformers import BertConfig


class BertForSequenceClassification(nn.Module):
    """Maps a batch to logits, float32 (B, num_labels).

    The batch holds `input_ids` and `attention_mask`, and may hold `token_type_ids` (zero by default), each
    int32 (B, T). Dropout is active if `apply` gets `rngs={"dropout": key}`. Parameters are float32, those of the layers
    stacked on a leading axis:

        bert/embeddings/{word,position,token_type}_embeddings/embedding, LayerNorm/{scale,bias}
        bert/encoder/layer/attention/self/{query,key,value}/{kernel,bias}
        bert/encoder/layer/attention/output/{dense/{kernel,bias},LayerNorm/{scale,bias}}
        bert/encoder/layer/{intermediate/dense/{kernel,bias},output/{dense/...,LayerNorm/...}}
        bert/pooler/dense/{kernel,bias}, classifier/{kernel,bias}
    """

    config: BertConfig = field(hash=False)
    dtype: Any = jnp.float32
    remat: bool = False
    attention: str = "auto"

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array]) -> jax.Array:
        pooled = BertModel(self.config, self.dtype, self.remat, self.attention, name="bert")(batch)
        pooled = drop_out(self, pooled, head_dropout(self.config))
        return dense(self.config, self.config.num_labels, self.dtype, "classifier")(pooled).astype(jnp.float32)


FAMILY = Family(
    BertForSequenceClassification,
    task="SEQ_CLS",
    prefix="bert",
    targets=("query", "value"),
    new_heads=("bert.pooler.", "classifier."),
    dropped=("cls.", "qa_outputs."),
    buffers=("bert.embeddings.position_ids", "bert.embeddings.token_type_ids"),
    old_suffixes={".LayerNorm.gamma": ".LayerNorm.weight", ".LayerNorm.beta": ".LayerNorm.bias"},
    honoured={
        "position_embedding_type": (None, "absolute"),
        "is_decoder": (None, False),
        "add_cross_attention": (None, False),
        "pruned_heads": (None, {}),
        "quantization_config": (None,),
    },
    token_types=True,
)


def head_dropout(config: Any) -> float:
    """Returns `config.classifier_dropout`, or `config.hidden_dropout_prob` if that is None."""
    return config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout


class BertModel(nn.Module):
    """Maps a batch to its pooled first tokens (B, hidden)."""

    config: BertConfig
    dtype: Any
    remat: bool
    attention: str

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array]) -> jax.Array:
        hidden = BertEmbeddings(self.config, self.dtype, name="embeddings")(batch)
        hidden = BertEncoder(self.config, self.dtype, self.remat, self.attention, name="encoder")(
            hidden, batch["attention_mask"]
        )
        return BertPooler(self.config, self.dtype, name="pooler")(hidden)


class BertEmbeddings(nn.Module):
    """Token, position and token type embeddings (B, T, hidden), normalized."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array]) -> jax.Array:
        config, ids = self.config, batch["input_ids"]
        require_length(ids.shape[1], config.max_position_embeddings)
        positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32)[None, :], ids.shape)
        return sum_embeddings(config, batch, positions, self.dtype, position_padding_row=None, module=self)


def sum_embeddings(
    config: Any,
    batch: dict[str, jax.Array],
    positions: jax.Array,
    dtype: Any,
    *,
    position_padding_row: int | None,
    module: nn.Module,
) -> jax.Array:
    """Sums and normalizes token, type and position embeddings (B, T, hidden), as submodules of `module`.

    These are `word_embeddings`, `token_type_embeddings`, `position_embeddings` and `LayerNorm`.

    Args:
      config: sizes of the tables, `layer_norm_eps`, `hidden_dropout_prob`, and `pad_token_id`, whose word starts as
        zeros.
      batch: `input_ids` and, if tokens are not all of type 0, `token_type_ids`, int32 (B, T).
      positions: int32 (B, T), rows of the table of positions.
      dtype: of the result.
      position_padding_row: the row of that table that starts as zeros; None for none.
      module: within its compact `__call__`; dropout is applied if it has a "dropout" key.
    """
    ids, hidden = batch["input_ids"], config.hidden_size
    words = embedding(config, config.vocab_size, hidden, "word_embeddings", padding_row=config.pad_token_id)
    types = embedding(config, config.type_vocab_size, hidden, "token_type_embeddings")
    places = embedding(
        config,
        config.max_position_embeddings,
        hidden,
        "position_embeddings",
        padding_row=position_padding_row,
    )
    x = words(ids) + types(batch.get("token_type_ids", jnp.zeros_like(ids))) + places(positions)
    return drop_out(module, LayerNorm(config.layer_norm_eps, dtype, name="LayerNorm")(x), config.hidden_dropout_prob)


class BertEncoder(nn.Module):
    """Applies all layers: (B, T, hidden) and the attention mask (B, T) to (B, T, hidden)."""

    config: BertConfig
    dtype: Any
    remat: bool
    attention: str

    @nn.compact
    def __call__(self, hidden: jax.Array, attention_mask: jax.Array) -> jax.Array:
        layers = scan_layers(BertLayer, self.config.num_hidden_layers, remat=self.remat)
        visibility = mask_visibility(attention_mask, self.attention)
        return layers(self.config, self.dtype, name="layer")(hidden, visibility)[0]


class BertLayer(nn.Module):
    """One layer, as a step of a scan: (hidden (B, T, hidden), visibility) -> (hidden, None)."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, hidden: jax.Array, visibility: Visibility) -> tuple[jax.Array, None]:
        hidden = BertAttention(self.config, self.dtype, name="attention")(hidden, visibility)
        inner = BertIntermediate(self.config, self.dtype, name="intermediate")(hidden)
        return BertOutput(self.config, self.dtype, name="output")(inner, hidden), None


class BertAttention(nn.Module):
    """Self-attention and its output block: (B, T, hidden) to the same."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, hidden: jax.Array, visibility: Visibility) -> jax.Array:
        mixed = BertSelfAttention(self.config, self.dtype, name="self")(hidden, visibility)
        return BertOutput(self.config, self.dtype, name="output")(mixed, hidden)


class BertSelfAttention(nn.Module):
    """Self-attention without the output projection: (B, T, hidden) to the same."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, hidden: jax.Array, visibility: Visibility) -> jax.Array:
        config = self.config
        heads = (
            *hidden.shape[:-1],
            config.num_attention_heads,
            config.hidden_size // config.num_attention_heads,
        )
        query, key, value = (
            dense(config, config.hidden_size, self.dtype, name)(hidden).reshape(heads)
            for name in ("query", "key", "value")
        )
        dropout_key = self.make_rng("dropout") if self.has_rng("dropout") else None
        mixed = attention(
            query, key, value, visibility, dropout_key=dropout_key, dropout_rate=config.attention_probs_dropout_prob
        )
        return mixed.reshape(hidden.shape)


class BertIntermediate(nn.Module):
    """The widening half of the feed-forward block: (B, T, hidden) to (B, T, intermediate)."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        config = self.config
        return activation(config.hidden_act)(dense(config, config.intermediate_size, self.dtype, "dense")(hidden))


class BertOutput(nn.Module):
    """Dense, dropout, and the layer norm of the sum with `residual` (B, T, hidden)."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, residual: jax.Array) -> jax.Array:
        x = dense(self.config, self.config.hidden_size, self.dtype, "dense")(x)
        x = drop_out(self, x, self.config.hidden_dropout_prob)
        return LayerNorm(self.config.layer_norm_eps, self.dtype, name="LayerNorm")(x + residual)


class BertPooler(nn.Module):
    """tanh of a dense layer on the first token: (B, T, hidden) to (B, hidden)."""

    config: BertConfig
    dtype: Any

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        return jnp.tanh(dense(self.config, self.config.hidden_size, self.dtype, "dense")(hidden[:, 0]))
