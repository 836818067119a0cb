"""BERT with LoRA written by hand inside the model, layers scanned: what an adapted function is held against.

Plain JAX on the base and adapter of `jlora.models`; the same numbers, without the transform.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from transformers import BertConfig

from jlora.models.attention.attention import attention
from jlora.models.attention.visibility import Visibility, mask_visibility
from jlora.models.blocks.layers import gelu, standardize

_LAYER = "params/bert/encoder/layer/"


def logits(config: BertConfig, base: Any, adapter: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """What `adapt(model.apply)(base, adapter, batch)` computes: float32 (B, num_labels).

    Args:
      base: of BertForSequenceClassification, {"params": ...}.
      adapter: LowRank on the linears of the layers, {"params/bert/encoder/layer/.../kernel": entry}.
      batch: `input_ids` and `attention_mask`, int32 (B, T).
    """
    bert = base["params"]["bert"]
    lora = {path.removeprefix(_LAYER): (entry.a, entry.b, entry.scale) for path, entry in adapter.items()}
    visibility = mask_visibility(batch["attention_mask"], "auto")

    def layer(x: jax.Array, weights: tuple) -> tuple[jax.Array, None]:
        return _layer(config, x, visibility, *weights), None

    x = _embed(config, bert["embeddings"], batch["input_ids"])
    x, _ = jax.lax.scan(layer, x, (bert["encoder"]["layer"], lora))
    pooled = jnp.tanh(_dense(x[:, 0], bert["pooler"]["dense"]))
    return _dense(pooled, base["params"]["classifier"])


def _embed(config: BertConfig, weights: Any, ids: jax.Array) -> jax.Array:
    table = {name: weights[f"{name}_embeddings"]["embedding"] for name in ("word", "token_type", "position")}
    x = table["word"][ids] + table["token_type"][0] + table["position"][jnp.arange(ids.shape[1])]
    return _norm(config, x, weights["LayerNorm"])


def _layer(config: BertConfig, x: jax.Array, visibility: Visibility, weights: Any, lora: dict[str, tuple]) -> jax.Array:
    heads = (*x.shape[:-1], config.num_attention_heads, config.hidden_size // config.num_attention_heads)
    own, output = weights["attention"]["self"], weights["attention"]["output"]
    query, key, value = (
        _dense(x, own[name], lora.get(f"attention/self/{name}/kernel")).reshape(heads)
        for name in ("query", "key", "value")
    )
    mixed = attention(query, key, value, visibility).reshape(x.shape)
    mixed = _dense(mixed, output["dense"], lora.get("attention/output/dense/kernel"))
    x = _norm(config, mixed + x, output["LayerNorm"])
    inner = gelu(_dense(x, weights["intermediate"]["dense"], lora.get("intermediate/dense/kernel")))
    inner = _dense(inner, weights["output"]["dense"], lora.get("output/dense/kernel"))
    return _norm(config, inner + x, weights["output"]["LayerNorm"])


def _dense(x: jax.Array, weights: Any, lora: tuple | None = None) -> jax.Array:
    """x W + bias, with LoRA + (x A^T) (s B): A (r, in), B (r, out), s (r,)."""
    y = x @ weights["kernel"]
    if lora is not None:
        a, b, scale = lora
        rows = x.reshape(-1, x.shape[-1])
        y = y + ((rows @ a.T) @ (b * jax.lax.stop_gradient(scale)[:, None])).reshape(y.shape)
    return y + weights["bias"]


def _norm(config: BertConfig, x: jax.Array, weights: Any) -> jax.Array:
    return standardize(x, config.layer_norm_eps) * weights["scale"] + weights["bias"]
