"""Adapters whose vocabulary is not the base's: tokens were added before training, and the tables are in their file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jlora.errors import JloraError
from jlora.models import family
from jlora.names import hf_keys, is_transposed
from jlora.paths import leaves_by_path, replace_leaves
from jlora.peft.keys import PREFIX
from jlora.peft.stored_tensors import stored_tensors, weights_file
from jlora.tying import HEAD

logger = logging.getLogger(__name__)

_FORMS = ("base_layer.", "original_module.", "")
"""Between a module's name and `weight`: the table that an adapter is on comes before one that is trained whole."""


def with_stored_vocabulary(folder: Path, model: Any, base: Any) -> tuple[Any, Any]:
    """(model, base) with as many tokens as the tables in an adapter's file have, which stand in for the base's.

    Both are returned as they are where the file has no table, or one of the base's size.

    Args:
      folder: of the adapter.
      model, base: a causal language model, as `load_base` gives it.

    Raises:
      JloraError: a file that has the embedding in another size, and not the head, or the other way round; whatever
        `stored_tensors` refuses.
    """
    size, tensors, leaves = model.config.vocab_size, stored_tensors(folder), leaves_by_path(base)
    names = {path: hf_keys(path, None)[0] for path in leaves}
    modules = (family(model.config.model_type).embedding, HEAD)
    stored = {path: _stored(tensors, name) for path, name in names.items() if name.rpartition(".")[0] in modules}
    sizes = {path: size if tensor is None else tensor.shape[0] for path, tensor in stored.items()}
    rows = next((rows for rows in sizes.values() if rows != size), size)
    if rows == size:
        return model, base
    if other := next((path for path, found in sizes.items() if found != rows), None):
        raise JloraError(
            f"{weights_file(folder)}: expected {names[other]} for {rows} tokens, as many as another table there has;"
            f" found it for {sizes[other]}. Was the adapter saved with save_embedding_layers=True?"
        )
    logger.info("%s: %d tokens, in the place of the base's %d: its tables are used", folder, rows, size)
    config = copy(model.config)
    config.vocab_size = rows
    tables = {path: _as_leaf(path, tensor, leaves[path]) for path, tensor in stored.items() if tensor is not None}
    return model.clone(config=config), replace_leaves(base, tables)


def _stored(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray | None:
    """The base's tensor `name`, `model.embed_tokens.weight`, in the file, or what is trained in its place."""
    module, _, parameter = name.rpartition(".")
    keys = (f"{PREFIX}{module}.{form}{parameter}" for form in _FORMS)
    return next((tensors[key] for key in keys if key in tensors), None)


def _as_leaf(path: str, tensor: np.ndarray, leaf: Any) -> Any:
    value = tensor.astype(np.float32)
    return jnp.asarray(value.T if is_transposed(path) else value, leaf.dtype)
