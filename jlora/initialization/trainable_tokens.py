"""Finds the embeddings and heads whose rows `trainable_token_indices` trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import jax

from jlora.errors import JloraError, TargetNotFoundError
from jlora.initialization.trace_uses import BaseUses
from jlora.lora.config import LoraConfig
from jlora.lora.entries import Rows
from jlora.lora.targets import matches
from jlora.tree.output_heads import HEAD, OUTPUT_EMBEDDINGS

_FIELD = "LoraConfig.trainable_token_indices"
_TOKEN_EMBEDDINGS = ("embed_tokens", "word_embeddings", "wte", "embed_in")


def plan_token_rows(config: LoraConfig, seen: BaseUses) -> dict[str, Rows]:
    """Returns {path of an embedding or output head: its trained rows, whose `value` is a ShapeDtypeStruct}.

    They are those of `config.trainable_token_indices`: {end of a module's name: ids}, or a list of ids for the token
    embedding; None gives {}. If the embedding is also the head, "lm_head" with the same ids is not another entry.

    Args:
      seen: from `trace_uses`.

    Raises:
      JloraError: a name does not match exactly one table; ids are empty, repeated or out of range; a head has a bias; a
        list of ids is given, but it is not clear for which embedding: there is none, or among several not just one ends
        in embed_tokens, word_embeddings, wte or embed_in.
    """
    wanted = config.trainable_token_indices
    if wanted is None:
        return {}
    tables = _tables(seen, "lookup")
    by_name = wanted if isinstance(wanted, Mapping) else {_token_embedding(tables): wanted}
    tables |= _heads(seen)
    others = [list(ids) for name, ids in by_name.items() if name != HEAD]
    named = {end: ids for end, ids in by_name.items() if not (seen.tied and end == HEAD and list(ids) in others)}
    found: dict[str, Rows] = {}
    for end, ids in named.items():
        paths = [path for path, name in tables.items() if matches([end], name)]
        if len(paths) != 1:
            there = ", ".join(tables.values()) or "none"
            raise TargetNotFoundError(
                f"{_FIELD}: expected the end of the name of one embedding or head, found {end!r}, which matches"
                f" {len(paths)}\nThere are: {there}"
            )
        found[paths[0]] = _rows(paths[0], seen, tuple(int(i) for i in ids))
    return found


def _tables(seen: BaseUses, kind: str) -> dict[str, str]:
    """Returns {path: module} of the leaves with this kind of use."""
    return {path: seen.modules[path][0] for path, uses in seen.uses.items() if any(use.kind == kind for use in uses)}


def _heads(seen: BaseUses) -> dict[str, str]:
    """Returns {path: module} of the kernels (dim, vocab) of output heads."""
    linear = {path: name for path, name in _tables(seen, "linear").items() if seen.leaves[path].ndim == 2}
    return {path: name for path, name in linear.items() if name.rpartition(".")[2] in OUTPUT_EMBEDDINGS}


def _token_embedding(tables: Mapping[str, str]) -> str:
    names = list(tables.values())
    tokens = [name for name in names if matches(_TOKEN_EMBEDDINGS, name)] if len(names) > 1 else names
    if len(tokens) != 1:
        raise JloraError(
            f"{_FIELD}: expected {{name of the embedding: ids}}, as the function has not just one token embedding\n"
            f"There are: {', '.join(names) or 'none'}"
        )
    return tokens[0]


def _rows(path: str, seen: BaseUses, ids: tuple[int, ...]) -> Rows:
    leaf, uses = seen.leaves[path], seen.uses[path]
    head = None if any(use.kind == "lookup" for use in uses) else next(use for use in uses if use.kind == "linear")
    if head is not None and any(seen.modules[bias] == seen.modules[path] for bias in seen.biases):
        raise JloraError(
            f"{_FIELD}: {path}: expected a head without a bias, because PEFT ignores the bias of a head whose rows it"
            f" trains; found one with a bias. Train the tables whole with modules_to_save"
        )
    axis = 0 if head is None else head.outputs[0]
    count = leaf.shape[axis]
    if leaf.ndim != 2 or len(set(ids)) != len(ids) or not all(0 <= i < count for i in ids) or not ids:
        raise JloraError(
            f"{_FIELD}: {path}: expected one or more different ids from 0 to {count - 1} (the table is {leaf.shape}),"
            f" found {ids}"
        )
    return Rows(_abstract((len(ids), leaf.shape[1 - axis]), leaf.dtype), ids, axis)


def _abstract(shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return cast(jax.Array, jax.ShapeDtypeStruct(shape, dtype))
