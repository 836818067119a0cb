"""The loss of a causal language model that `train.loop.step` minimizes, and its evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jlora import adapt, combine
from jlora.models.mesh_ops import gather_weight
from jlora.sharding.rules import leaf_names
from jlora.tree.leaf_paths import leaves_by_path, replace_leaves
from jlora.tree.output_heads import is_in_head
from train.lm.data.batches import Batch
from train.lm.loss import Sums, next_token_sums
from train.loop.step import TotalLoss


def causal_loss(model: Any, *, model_dropout: bool) -> TotalLoss:
    """Makes total_loss(trainable, frozen, base, batch, key): the sum of a batch's losses times its tokens' weights.

    `trainable` and `frozen` are the two trees of `jlora.split(adapter)`, `batch` is a Batch. The result is float32 ().

    Args:
      model: the linen module of a causal language model, with the methods `hidden` and `logits`.
      model_dropout: whether the model's own dropout is active; the adapter's dropout has its own rate.
    """
    sums = _sums(model)

    def total_loss(trainable: Any, frozen: Any, base: Any, batch: Batch, key: jax.Array) -> jax.Array:
        adapter_key, model_key = jax.random.split(key)
        rngs = {"dropout": model_key} if model_dropout else None
        return sums(trainable, frozen, base, batch, adapter_key, rngs).loss

    return total_loss


def loss_and_hits(model: Any) -> Callable[[Any, Any, Batch], Sums]:
    """Makes forward(adapter, base, batch) -> Sums over the batch's tokens, without dropout; `adapter` may be None."""
    sums = _sums(model)
    return lambda adapter, base, batch: sums(None, adapter, base, batch, None, None)


def split_metrics(sums: Sequence[Sums], tokens: int) -> dict[str, float]:
    """Computes loss (mean over a split's learnt tokens), perplexity (its exponential) and token_accuracy.

    Args:
      sums: of each of the split's batches, at least one.
      tokens: how many tokens of the split are learnt, at least one.

    Returns:
      {"loss": sum of the losses / tokens, "perplexity": exp(loss), of a loss above 700 exp(700), "token_accuracy": sum
        of the correct / tokens}.
    """
    losses, right = np.array(sums, np.float64).sum(0)
    loss = float(losses / tokens)
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),  # a float holds no more
        "token_accuracy": float(right / tokens),
    }


def _sums(model: Any) -> Callable[..., Sums]:
    hidden = adapt(lambda base, inputs, rngs: model.apply(base, inputs, rngs=rngs, method="hidden"))
    logits = adapt(lambda base, states: model.apply(base, states, method="logits"))

    def logits_of(trainable: Any, frozen: Any, states: jax.Array, chunk: jax.Array) -> jax.Array:
        kept, base, key = frozen
        key = None if key is None else jax.random.fold_in(key, chunk)
        return logits(base, _whole(trainable, kept), states, dropout_key=key)

    def sums(trainable: Any, frozen: Any, base: Any, batch: Batch, key: jax.Array | None, rngs: Any) -> Sums:
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        states = hidden(base, _whole(trainable, frozen), batch.inputs, rngs, dropout_key=keys[0])
        rest = (frozen, _with_whole_tables(base), keys[1])
        return next_token_sums(logits_of, trainable, rest, states, batch.targets, batch.weights)

    return sums


def _with_whole_tables(base: Any) -> Any:
    """Gathers embeddings and output head on the mesh once, instead of for each chunk of logits."""
    leaves = {
        path: leaf for path, leaf in leaves_by_path(base).items() if path.endswith("embedding") or is_in_head(path)
    }
    return replace_leaves(
        base, {path: gather_weight(leaf, leaf_names(path, leaf.ndim)) for path, leaf in leaves.items()}
    )


def _whole(trainable: Any, frozen: Any) -> Any:
    """Combines trainable and frozen leaves; if `trainable` is None, `frozen` is already the complete adapter."""
    return frozen if trainable is None else combine(trainable, frozen)
