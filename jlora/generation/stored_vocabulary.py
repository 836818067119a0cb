"""Loads adapters whose vocabulary differs from the base's, because tokens were added before training.

Their file has the tables, or the trained rows of the tokens that the base lacks.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jlora.errors import AdapterMismatchError, FileError
from jlora.lora.config import LoraConfig
from jlora.lora.targets import matches
from jlora.models.registry import family
from jlora.peft.config_file import CONFIG, read_base_name
from jlora.peft.folder import read_lora_config
from jlora.peft.same_base import require_base_sizes
from jlora.peft.stored_tensors import read_tensors, weights_file
from jlora.peft.tensor_keys import PREFIX
from jlora.pretrained.grown_tables import grown, table_paths, with_vocabulary
from jlora.tree.leaf_paths import leaves_by_path, replace_leaves
from jlora.tree.module_names import is_transposed
from jlora.tree.output_heads import HEAD

logger = logging.getLogger("jlora")

_FORMS = ("base_layer.", "original_module.", "")
"""Parts of keys between module name and `weight`: the table under an adapter comes before one trained in full."""


def with_stored_vocabulary(folder: Path, model: Any, base: Any) -> tuple[Any, Any]:
    """Returns (model, base) with as many tokens as an adapter's file has.

    The file's tables replace the base's. If it has only trained rows of further tokens, the base's tables grow. If it
    has neither, both are returned unchanged.

    The number of tokens is `model.config.vocab_size`. New rows that are not in the file are the mean of the table's
    rows; `load_adapter` reads the trained rows.

    Args:
      folder: of the adapter, with `adapter_config.json` and its tensors.
      model, base: a causal language model, from `load_base`.

    Raises:
      AdapterMismatchError: the adapter is of another base; the configuration trains rows of only some of the new
        tokens, or of only one of the two tables.
      FileError: the adapter's files are missing or damaged, or the file has only the embedding or only the head in
        another size.
    """
    size, tensors, leaves = model.config.vocab_size, read_tensors(folder), leaves_by_path(base)
    require_base_sizes(tensors, leaves, str(weights_file(folder)), read_base_name(folder))
    names = table_paths(model, base)
    stored = {path: _find_tensor(tensors, name) for path, name in names.items()}
    sizes = {path: size if tensor is None else tensor.shape[0] for path, tensor in stored.items()}
    rows = next((rows for rows in sizes.values() if rows != size), size)
    if rows == size:
        return _with_rows_of_new_tokens(folder, model, base)
    if other := next((path for path, found in sizes.items() if found != rows), None):
        raise FileError(
            f"{weights_file(folder)}: expected {names[other]} for {rows} tokens, like the other table in the file;"
            f" found it for {sizes[other]}. Save the adapter again with save_embedding_layers=True"
        )
    logger.info("%s: its tables replace the base's: %d tokens instead of %d", folder, rows, size)
    tables = {}
    for path, tensor in stored.items():
        if tensor is not None:
            value = tensor.astype(np.float32)
            tables[path] = jnp.asarray(value.T if is_transposed(path) else value, leaves[path].dtype)
    return with_vocabulary(model, rows), replace_leaves(base, tables)


def find_trained_ids(lora: LoraConfig, module: str, *, is_embedding: bool) -> frozenset[int]:
    """Returns the ids of this table's trained rows, from `trainable_token_indices`; a list of ids is for the embedding.

    In a mapping each key is the end of a module's name, and counts if it is the end of `module`.
    """
    wanted = lora.trainable_token_indices or {}
    if not isinstance(wanted, Mapping):
        return frozenset(wanted) if is_embedding else frozenset()
    return frozenset(index for end, ids in wanted.items() if matches([end], module) for index in ids)


def _with_rows_of_new_tokens(folder: Path, model: Any, base: Any) -> tuple[Any, Any]:
    """Grows the tables to the last token whose row the adapter trains."""
    lora, size = read_lora_config(folder), model.config.vocab_size
    embedding = family(model.config.model_type).embedding
    modules = [embedding] if model.config.tie_word_embeddings else [embedding, HEAD]
    new = {
        name: {i for i in find_trained_ids(lora, name, is_embedding=name == embedding) if i >= size} for name in modules
    }
    rows = max((index + 1 for ids in new.values() for index in ids), default=size)
    for name, ids in new.items():
        if len(ids) != rows - size:
            raise AdapterMismatchError(
                f"{folder / CONFIG}: trainable_token_indices: expected rows of {name} for the {rows - size} tokens from"
                f" {size} on, which the base does not have; found {len(ids)} of them. Save the adapter with its tables"
                " (save_embedding_layers=True), or give a base that has these tokens with --base"
            )
    if rows > size:
        logger.info("%s: %d tokens more than the base's %d: the base's tables grow", folder, rows - size, size)
    return grown(model, base, rows)


def _find_tensor(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray | None:
    """Returns the base's tensor `name`, such as `model.embed_tokens.weight`, or the trained one that replaces it."""
    module, _, parameter = name.rpartition(".")
    keys = (f"{PREFIX}{module}.{form}{parameter}" for form in _FORMS)
    return next((tensors[key] for key in keys if key in tensors), None)
