"""RoBERTa with a sequence classification head: BERT's layers, positions counted from the padding index."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jlora.models.blocks.layers import dense, drop_out, require_length
from jlora.models.families import bert
from jlora.models.families.bert import BertEncoder, head_dropout, sum_embeddings
from jlora.models.family import Family

if TYPE_CHECKING:
    from transformers import RobertaConfig


class RobertaForSequenceClassification(nn.Module):
    """Maps a batch to logits, float32 (B, num_labels).

    The batch holds `input_ids` and `attention_mask`, and may hold `token_type_ids` (zero by default), each
    int32 (B, T). Dropout is active if `apply` gets `rngs={"dropout": key}`. Parameters are float32 and the same as
    BERT's, except for the prefix and the head:

        roberta/{embeddings,encoder}/..., classifier/{dense,out_proj}/{kernel,bias}
    """

    config: RobertaConfig = field(hash=False)
    dtype: Any = jnp.float32
    remat: bool = False
    attention: str = "auto"

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array]) -> jax.Array:
        hidden = RobertaModel(self.config, self.dtype, self.remat, self.attention, name="roberta")(batch)
        logits = RobertaClassificationHead(self.config, self.dtype, name="classifier")(hidden[:, 0])
        return logits.astype(jnp.float32)


FAMILY = Family(
    RobertaForSequenceClassification,
    task="SEQ_CLS",
    prefix="roberta",
    targets=("query", "value"),
    new_heads=("classifier.",),
    dropped=("lm_head.", "qa_outputs.", "roberta.pooler."),
    buffers=("roberta.embeddings.position_ids", "roberta.embeddings.token_type_ids"),
    old_suffixes=bert.FAMILY.old_suffixes,
    honoured=bert.FAMILY.honoured,
)


class RobertaModel(nn.Module):
    """Maps a batch to the last layer's output (B, T, hidden)."""

    config: RobertaConfig
    dtype: Any
    remat: bool
    attention: str

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array]) -> jax.Array:
        hidden = RobertaEmbeddings(self.config, self.dtype, name="embeddings")(batch)
        return BertEncoder(self.config, self.dtype, self.remat, self.attention, name="encoder")(
            hidden, batch["attention_mask"]
        )


class RobertaEmbeddings(nn.Module):
    """Token, position and token type embeddings (B, T, hidden), normalized."""

    config: RobertaConfig
    dtype: Any

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array]) -> jax.Array:
        config, ids = self.config, batch["input_ids"]
        require_length(ids.shape[1], config.max_position_embeddings - config.pad_token_id - 1)
        positions = position_ids(ids, config.pad_token_id)
        return sum_embeddings(
            config, batch, positions, self.dtype, position_padding_row=config.pad_token_id, module=self
        )


def position_ids(input_ids: jax.Array, padding: int) -> jax.Array:
    """Returns int32 (B, T): `padding` + 1, `padding` + 2, ... for a row's tokens, and `padding` for padding.

    Padding is where `input_ids` (B, T) is `padding`; it is not counted: [5, 1, 7] with padding 1 gives [2, 1, 3].
    """
    tokens = (input_ids != padding).astype(jnp.int32)
    return jnp.cumsum(tokens, axis=1) * tokens + padding


class RobertaClassificationHead(nn.Module):
    """Maps the first token (B, hidden) to logits (B, num_labels)."""

    config: RobertaConfig
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        config = self.config
        x = drop_out(self, x, head_dropout(config))
        x = jnp.tanh(dense(config, config.hidden_size, self.dtype, "dense")(x))
        x = drop_out(self, x, head_dropout(config))
        return dense(config, config.num_labels, self.dtype, "out_proj")(x)
