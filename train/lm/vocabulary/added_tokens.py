"""Adds tokens to the tokenizer (`data.add_tokens`), and makes the settings that train their rows."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken

from jlora.errors import JloraError
from jlora.generation.stored_vocabulary import find_trained_ids
from jlora.lora.config import LoraConfig
from jlora.lora.targets import is_trained_whole, matches
from jlora.lora.tied_embedding import means
from jlora.models.registry import family
from jlora.tree.output_heads import HEAD

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_KEY = "data.add_tokens"


def add_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], size: int) -> tuple[int, ...]:
    """Adds the texts that are not tokens yet to the tokenizer, and logs which are added and which it has already.

    They are plain tokens, as with Axolotl's `tokens:`: they are recognized anywhere in a text, keep the spaces around
    them, and are shown in generated text.

    Args:
      size: the number of rows of the model's embedding, which may be more or less than the tokenizer's tokens.

    Returns:
      The ids whose rows must be trained, ascending: those of the added tokens, and all from `size` up to the largest of
      them. () if every text is a token already; a text given twice is added once.
    """
    texts, known = tuple(dict.fromkeys(texts)), tokenizer.get_vocab()
    if had := [text for text in texts if text in known]:
        logger.info("%s: already tokens: %s", _KEY, ", ".join(f"{text!r} ({known[text]})" for text in had))
    new = [text for text in texts if text not in known]
    if not new:
        return ()
    tokenizer.add_tokens([AddedToken(text, lstrip=False, rstrip=False, normalized=False) for text in new])
    ids = tokenizer.convert_tokens_to_ids(new)
    logger.info("%s: added: %s", _KEY, ", ".join(f"{text!r} ({index})" for text, index in zip(new, ids, strict=True)))
    return tuple(sorted({*ids, *range(size, max(ids) + 1)}))


def vocabulary(stored: PreTrainedConfig, added: Sequence[int]) -> int:
    """Returns how many tokens the model has: `stored.vocab_size`, or the largest of `added` + 1 if that is more."""
    return max([stored.vocab_size, *(index + 1 for index in added)])


def training_added(lora: LoraConfig, model: PreTrainedConfig, added: Sequence[int]) -> LoraConfig:
    """Returns the settings that also train the rows of the added tokens, unless they train the tables in full.

    The ids are appended to `trainable_token_indices`, for the embedding and, unless it is tied, the head: a list if it
    is only for the embedding, else {last part of the table's name: ids}. Without `added`, or if the embedding and head
    are trained in full, `lora` itself is returned.

    Args:
      model: says whether the head is tied.
      added: the ids of the added tokens.

    Raises:
      JloraError: a table has an adapter, or only one of the two is trained in full: PEFT's file would lack new rows.
    """
    if not added:
        return lora
    embedding = family(model.model_type).embedding
    whole = [is_trained_whole(lora, module) for module in (embedding, HEAD)]
    if all(whole) or (any(whole) and lora.ensure_weight_tying and model.tie_word_embeddings):
        return lora
    if any(whole) or means(lora, embedding) or means(lora, HEAD):
        end = embedding.rpartition(".")[2]
        raise JloraError(
            f"{_KEY}: expected both the embedding and the head in lora.modules_to_save, [{end},{HEAD}], or neither of"
            " them there or in lora.target_modules; found another combination, whose adapter would lack new rows"
        )
    tables = [embedding] if model.tie_word_embeddings else [embedding, HEAD]
    return dataclasses.replace(lora, trainable_token_indices=_with_rows(lora.trainable_token_indices, tables, added))


def _with_rows(given: Any, tables: Sequence[str], added: Sequence[int]) -> Any:
    """Adds the ids to `trainable_token_indices`, which remains a list if it is only for the embedding."""
    if len(tables) == 1 and not isinstance(given, Mapping):
        return list(dict.fromkeys([*(given or ()), *added]))
    if not isinstance(given, Mapping):
        given = {tables[0].rpartition(".")[2]: list(given)} if given else {}
    rows = {end: list(ids) for end, ids in given.items()}
    for table in tables:
        end = next((end for end in rows if matches([end], table)), table.rpartition(".")[2])
        rows[end] = list(dict.fromkeys([*rows.get(end, ()), *added]))
    return rows


def require_trained(lora: LoraConfig, model: PreTrainedConfig, added: Sequence[int], where: str) -> None:
    """Raises JloraError if a stored adapter lacks rows of added tokens, or trains rows of tokens that do not exist.

    Args:
      lora: the adapter's settings.
      model: with the tokens that are added.
      where: the adapter's folder.
    """
    embedding = family(model.model_type).embedding
    for table in [embedding] if model.tie_word_embeddings else [embedding, HEAD]:
        ids = find_trained_ids(lora, table, is_embedding=table == embedding)
        if missing := sorted(set(added) - ids) if not is_trained_whole(lora, table) else []:
            raise JloraError(
                f"lora.from: {where}: expected an adapter that trains rows of {table} for the tokens of {_KEY}, ids"
                f" {missing}; found none. Give the same {_KEY} as the run that made it; or merge it (jlora export) and"
                " give the merged model, model=FOLDER, instead of lora.from"
            )
        if beyond := sorted(index for index in ids if index >= model.vocab_size):
            raise JloraError(
                f"lora.from: {where}: expected rows of the model's {model.vocab_size} tokens; found rows {beyond} of"
                f" {table}. Give the same {_KEY} as the run that made it"
            )
