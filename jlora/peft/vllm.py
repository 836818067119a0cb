"""Converts adapters to the form that vLLM can serve: one rank, the scale in B, and only A and B."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jlora.errors import JloraError
from jlora.lora.config import LoraConfig
from jlora.lora.entries import Adapter, Entry, Full, LowRank, Rows, scale_b

_LARGEST_RANK = 512
"""The largest `max_lora_rank` that vLLM can be started with."""


def for_vllm(adapter: Adapter, config: LoraConfig, names: list[str]) -> tuple[dict[str, LowRank], LoraConfig]:
    """Converts an adapter to one rank and the scale 1, without changing its function; returns (adapter, config).

    vLLM reads `r`, `lora_alpha` and `use_rslora`, but no patterns: B is multiplied by the scale, and A and B are padded
    with zeros to the largest rank.

    Args:
      adapter: of linear weights and of embeddings named `embed_tokens`.
      config: the configuration that the adapter was made with.
      names: of the adapted modules.

    Returns:
      The adapter, whose layers all have the largest rank, except those of rank 0; and a LoraConfig with this rank as
      `r` and `lora_alpha`, `names` as `target_modules`, and the dropout of `config`.

    Raises:
      JloraError: an entry that vLLM cannot serve (`Full`, `Rows`, DoRA, a convolution, another embedding, a tied one),
        or a largest rank that is not from 1 to 512; the message says what to do instead.
    """
    low_ranks = {path: _require_supported(path, entry) for path, entry in adapter.items()}
    rank = max((max(entry.ranks) for entry in low_ranks.values()), default=0)
    if not 0 < rank <= _LARGEST_RANK:
        raise JloraError(
            f"rank: expected 1 to {_LARGEST_RANK}, vLLM's largest, found {rank}; jlora.reduce_rank makes it smaller"
        )
    plain = LoraConfig(
        r=rank, lora_alpha=rank, target_modules=names, lora_dropout=config.lora_dropout, modules_to_save=()
    )
    return {path: _fold_and_pad(entry, rank) for path, entry in low_ranks.items()}, plain


def _require_supported(path: str, entry: Entry) -> LowRank:
    merge = (
        "merge the adapter into the base, which vLLM serves whole: jlora.merge, or jlora export --out without --vllm"
    )
    if isinstance(entry, Full):
        what = "a bias" if path.endswith("/bias") else "a weight of modules_to_save"
        raise JloraError(f"{path}: expected A and B alone for vLLM, found {what} that is trained whole; {merge}")
    if isinstance(entry, Rows):
        raise JloraError(f"{path}: expected A and B alone for vLLM, found trained rows of an embedding; {merge}")
    if entry.magnitude is not None:
        raise JloraError(f"{path}: expected plain LoRA for vLLM, found DoRA's magnitude; {merge}")
    if entry.kind == "conv":
        raise JloraError(f"{path}: expected a linear weight or an embedding for vLLM, found a convolution; {merge}")
    if entry.kind == "lookup" and "embed_tokens" not in path.split("/"):
        raise JloraError(f"{path}: expected an embedding that vLLM adapts, embed_tokens, found another; {merge}")
    if entry.kind == "lookup" and entry.tied:
        raise JloraError(f"{path}: expected an adapter that the lookup alone sees, found ensure_weight_tying; {merge}")
    return entry


def _fold_and_pad(entry: LowRank, rank: int) -> LowRank:
    """Pads the entry to `rank` and multiplies B by the scale, which becomes 1 for adapted layers."""
    stack = entry.scale.shape[:-1]
    present = jnp.expand_dims(entry.scale != 0, tuple(range(entry.scale.ndim, entry.a.ndim)))
    a, b = (_set_rank(x, len(stack), rank) for x in (jnp.where(present, entry.a, 0), scale_b(entry)))
    adapted = jnp.asarray([float(number > 0) for number in entry.ranks], entry.scale.dtype)
    scale = jnp.broadcast_to(adapted.reshape(*stack, 1), (*stack, rank))
    ranks = tuple(rank if number else 0 for number in entry.ranks)
    return dataclasses.replace(entry, a=a, b=b, scale=scale, ranks=ranks)


def _set_rank(factor: jax.Array, axis: int, rank: int) -> jax.Array:
    factor = jax.lax.slice_in_dim(factor, 0, min(rank, factor.shape[axis]), axis=axis)
    return jnp.pad(factor, [(0, rank - factor.shape[axis] if i == axis else 0) for i in range(factor.ndim)])
