"""Resizes a language model to more tokens than its files have: the embedding, and an untied head, get new rows.

Each new row is the mean of the table's rows, as in transformers' `resize_token_embeddings` (which draws it around the
mean with a variance of a billionth). The mean is summed in float64 in the host's memory in a fixed order, so it has
the same bits on every mesh, in every process and when a run is resumed.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jlora.models.registry import family
from jlora.pretrained.place_leaf import place_on_mesh
from jlora.pretrained.source import PretrainedSource
from jlora.pretrained.weights import load_weights
from jlora.sharding.to_host import to_host
from jlora.tree.leaf_paths import leaves_by_path, replace_leaves
from jlora.tree.module_names import hf_keys, is_transposed
from jlora.tree.output_heads import HEAD

_BLOCK = 4096
"""How many rows are summed at a time."""


def with_vocabulary(model: Any, size: int) -> Any:
    """Returns the linen model with `size` tokens; it and its config are copied, unless it has that size already."""
    if model.config.vocab_size == size:
        return model
    config = copy(model.config)
    config.vocab_size = size
    return model.clone(config=config)


def table_paths(model: Any, base: Any) -> dict[str, str]:
    """Returns {path: checkpoint's key} of the leaves with an axis of tokens, of the embedding and an untied head.

    For Llama: {"params/model/embed_tokens/embedding": "model.embed_tokens.weight", "params/lm_head/kernel":
    "lm_head.weight"}, without the second if the base has no head of its own.
    """
    keys = {path: hf_keys(path, None)[0] for path in leaves_by_path(base)}
    modules = (family(model.config.model_type).embedding, HEAD)
    return {path: key for path, key in keys.items() if key.rpartition(".")[0] in modules}


def grown(model: Any, base: Any, size: int, mesh: Mesh | None = None) -> tuple[Any, Any]:
    """Returns (model, base) with `size` tokens, at least as many as they have. All processes must call it.

    Each new row of the embedding, and of an untied head, is the mean of the table's rows. If they have as many tokens
    already, both are returned as they are.

    Args:
      mesh: the mesh that the base is on, or None.
    """
    if size == model.config.vocab_size:
        return model, base
    leaves = leaves_by_path(base)
    tables = {path: _grown(path, leaves[path], size, mesh) for path in table_paths(model, base)}
    return with_vocabulary(model, size), replace_leaves(base, tables)


def load_grown(model: Any, source: PretrainedSource, *, mesh: Mesh | None = None, **options: Any) -> Any:
    """Loads the weights of `source` with `load_weights`, and grows them to as many tokens as `model` has.

    Args:
      model: from `build` or `load_base`; it has as many tokens as the files, or more.
      source, mesh, options: of `load_weights`.

    Returns:
      The base, {"params": ...}; new rows of the embedding and an untied head are the mean of the table's rows.
    """
    stored = with_vocabulary(model, source.config.vocab_size)
    base = load_weights(stored, source, mesh=mesh, **options)
    return grown(stored, base, model.config.vocab_size, mesh)[1]


def _grown(path: str, leaf: Any, size: int, mesh: Mesh | None) -> Any:
    table = to_host(leaf)
    rows = table.T if is_transposed(path) else table
    blocks = (rows[start : start + _BLOCK].astype(np.float64) for start in range(0, len(rows), _BLOCK))
    mean = sum(block.sum(axis=0) for block in blocks) / len(rows)
    new = np.broadcast_to(np.asarray(mean).astype(rows.dtype), (size - len(rows), *rows.shape[1:]))
    value = np.concatenate([rows, new])
    value = value.T if is_transposed(path) else value
    return jnp.asarray(value) if mesh is None else place_on_mesh(path, value, mesh)
