"""Decides whether a checkpoint's head and embedding are one tensor or two.

A config with `tie_word_embeddings` says that they are one. If the files hold both and the values differ, the head is
still loaded as a separate table, as in transformers.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jlora.errors import JloraError
from jlora.models.family import HEAD_KEY, Family
from jlora.models.registry import family

logger = logging.getLogger("jlora")

_ROWS = 4096
"""How many rows of two tables are compared at a time."""


def holds_own_head(kind: Family, tensors: Mapping[str, Any]) -> bool:
    """Returns whether the files hold a head that differs from the embedding.

    Args:
      kind: a family of causal language models.
      tensors: {key: tensor} as `open_tensors` opens them.
    """
    head = _first(tensors, (HEAD_KEY, kind.stored_names.get(HEAD_KEY, HEAD_KEY)))
    table = f"{kind.embedding}.weight"
    embedding = _first(tensors, (table, table.removeprefix(f"{kind.prefix}.")))
    return head is not None and embedding is not None and not _are_equal(head, embedding)


def with_both_tables(model: Any, folder: Path, tensors: Mapping[str, Any], *, files_tie: bool) -> dict[str, Any]:
    """Returns `tensors`, with the head or the embedding added that the files leave out because it equals the other one.

    A head is the key `lm_head.weight`, an embedding for example `model.embed_tokens.weight`. Without `files_tie`
    nothing is added. If the model's head is tied, the result has no head.

    Args:
      model: a causal language model; its config is read.
      folder: of the files, for messages.
      tensors: {current key: tensor} of the files, as `open_tensors` opens them (StoredTensor or GgufTensor, no arrays).
        A table that is added is the same object as the other one.
      files_tie: whether the stored config says that they are one tensor.

    Raises:
      JloraError: the model is tied, but its files hold a head that differs from the embedding.
      FileError: a table that must be compared is not of floating point, or is empty.
    """
    kind, found = family(model.config.model_type), dict(tensors)
    embedding_key = f"{kind.embedding}.weight"
    head, embedding = found.get(HEAD_KEY), found.get(embedding_key)
    tied = model.config.tie_word_embeddings
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
        logger.info(
            "%s: the head, which the files tie to %s, is loaded as a separate table, as in PEFT;"
            " ensure_weight_tying keeps one table for both",
            folder,
            embedding_key,
        )
    elif files_tie and head is not None and not _are_equal(head, embedding):
        logger.warning(
            "%s: %s and %s have different values, although config.json says tie_word_embeddings: the head is not tied",
            folder, head.key, embedding_key,
        )  # fmt: skip
    return found


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
