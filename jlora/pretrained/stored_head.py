"""Decides whether a checkpoint's head and embedding are one tensor or two.

A config with `tie_word_embeddings` says that they are one. If the files hold both and the values differ, the head is
still loaded as a separate table, as in transformers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jlora.errors import JloraError
from jlora.files.bounded_json import read_json
from jlora.gguf.model import is_gguf
from jlora.models.family import HEAD_KEY
from jlora.models.registry import family
from jlora.pretrained.folder import WEIGHT_PATTERNS, find_downloaded, open_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

logger = logging.getLogger("jlora")

_ROWS = 4096
"""How many rows of two tables are compared at a time."""


def with_stored_head(config: PreTrainedConfig, name: str, *, revision: str | None = None) -> PreTrainedConfig:
    """Sets `tie_word_embeddings` to false if the files hold a head that differs from the embedding.

    The result is then a copy of the config, else the config itself: also if it is not tied, not a causal language
    model's, or no weights are on this disk, since nothing is downloaded. Values are compared, not only whether there
    are two tables.

    Args:
      config: from `load_config`.
      name: a folder with safetensors files, a GGUF file, or a hub id.
      revision: the hub's branch, tag or commit.

    Raises:
      FileError: a file is incomplete or refused, or a table is not of floating point.
    """
    kind = family(config.model_type)
    if kind.task != "CAUSAL_LM" or not config.tie_word_embeddings:
        return config
    folder = find_downloaded(name, revision, WEIGHT_PATTERNS)
    if folder is None or is_gguf(folder):  # a GGUF file has no second table, or its config is not tied
        return config
    tensors = open_tensors(folder)
    head = _first(tensors, (HEAD_KEY, kind.stored_names.get(HEAD_KEY, HEAD_KEY)))
    table = f"{kind.embedding}.weight"
    embedding = _first(tensors, (table, table.removeprefix(f"{kind.prefix}.")))
    if head is None or embedding is None or _are_equal(head, embedding):
        return config
    config = copy(config)
    config.tie_word_embeddings = False
    return config


def with_both_tables(model: Any, folder: Path, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `tensors`, with the head or the embedding added that the files leave out because it equals the other one.

    A head is the key `lm_head.weight`, an embedding for example `model.embed_tokens.weight`. If the model's head is
    tied, the result has no head. Nothing is added unless the files tie them: their config.json says so, or a GGUF file
    has no head.

    Args:
      model: a causal language model; its config is read.
      folder: of the files.
      tensors: {current key: tensor} of the files.

    Raises:
      JloraError: the model is tied, but its files hold a head that differs from the embedding.
    """
    kind, found = family(model.config.model_type), dict(tensors)
    embedding_key = f"{kind.embedding}.weight"
    head, embedding = found.get(HEAD_KEY), found.get(embedding_key)
    tied, files_tie = model.config.tie_word_embeddings, _files_tie(folder, model.config, found)
    if head is not None and embedding is None and files_tie:
        found[embedding_key] = embedding = head
    if tied and head is not None and embedding is not None and not _are_equal(head, embedding):
        raise JloraError(
            f"{head.file}: {head.key}: expected the values of {embedding_key}, to which the model's head is tied; found"
            " others. Build the model with tie_word_embeddings=False, as load_base does"
        )
    if tied:
        found.pop(HEAD_KEY, None)
    elif head is None and embedding is not None and files_tie:
        found[HEAD_KEY] = embedding
        logger.info("%s: the head, which the files tie to %s, is loaded as a separate table", folder, embedding_key)
    elif files_tie and head is not None and not _are_equal(head, embedding):
        logger.warning(
            "%s: %s and %s have different values, although config.json says tie_word_embeddings: the head is not tied",
            folder, head.key, embedding_key,
        )  # fmt: skip
    return found


def _files_tie(folder: Path, config: PreTrainedConfig, tensors: Mapping[str, Any]) -> bool:
    """Returns whether the checkpoint itself ties head and embedding; a GGUF file does so by leaving out the head."""
    if is_gguf(folder):
        return HEAD_KEY not in tensors
    file = folder / "config.json"
    stored = read_json(file) if file.is_file() else {}
    return bool(stored.get("tie_word_embeddings", type(config)().tie_word_embeddings))


def _first(tensors: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((tensors[name] for name in names if name in tensors), None)


def _are_equal(head: Any, embedding: Any) -> bool:
    """Returns whether two tensors of files hold the same numbers; reads them up to the first difference."""
    if head is embedding:
        return True
    for tensor in (head, embedding):
        tensor.require_float()
    if head.shape != embedding.shape:
        return False
    left, right = (np.asarray(tensor.as_numpy()) for tensor in (head, embedding))
    blocks = (slice(start, start + _ROWS) for start in range(0, len(left), _ROWS))
    return all(np.array_equal(left[rows].astype(np.float32), right[rows].astype(np.float32)) for rows in blocks)
