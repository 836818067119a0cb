"""Tokenizes texts with the fast tokenizer on all cores, and decides which tokens are learnt."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Encoding, Tokenizer

from jlora.errors import JloraError
from train.lm.data.examples import Counts, Examples
from train.lm.text.documents import Documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXTS_AT_ONCE = 1024


def tokenize_texts(documents: Documents, tokenizer: PreTrainedTokenizerBase) -> Examples:
    """Tokenizes complete texts as examples of any length.

    A token is learnt if one of its characters is. Plain texts and completions begin as the tokenizer says (with
    `bos_token`, but not twice if the text already begins with it) and end in `eos_token`, which is learnt; chats begin
    and end as their template says. An example's `prompts` counts the tokens that end before the first answer; in
    `counts` there are `rows` and `straddling`.

    Raises:
      JloraError: the tokenizer is a slow one, or has no end token although texts need it.
    """
    end = None if documents.from_template else _end_token(tokenizer)
    ids, learn, prompts, straddling = [np.zeros(0, np.int32)], [np.zeros(0, bool)], [], 0
    for index, encoding in enumerate(_encodings(documents, tokenizer)):
        row, (learnt, prompt, straddles) = encoding.ids, _find_learnt(encoding, documents, index)
        if not documents.from_template and row[:2] == [tokenizer.bos_token_id] * 2:  # the text begins with it, too
            row, learnt, prompt = row[1:], learnt[1:], max(prompt - 1, 0)
        if end is not None:
            if row[-1:] != [end]:
                row, learnt = [*row, end], np.append(learnt, True)
            learnt[-1] = True
        learnt[:1] = False
        ids.append(np.array(row, np.int32))
        learn.append(learnt)
        prompts.append(prompt)
        straddling += straddles
    offsets = np.cumsum([len(row) for row in ids])
    counts = Counts(rows=len(documents), straddling=straddling)
    return Examples(np.concatenate(ids), np.concatenate(learn), offsets, np.array(prompts, np.int64), counts)


def _encodings(documents: Documents, tokenizer: PreTrainedTokenizerBase) -> Iterator[Encoding]:
    """Encodes every text without padding or truncation, also if the tokenizer's file has them.

    The result has character spans only if they are needed.
    """
    if not tokenizer.is_fast:
        raise JloraError(f"{tokenizer.name_or_path}: expected a fast tokenizer; found a slow one")
    fast: Tokenizer = copy.deepcopy(tokenizer.backend_tokenizer)
    fast.no_padding()
    fast.no_truncation()
    plain = documents.learnt is None and not any(documents.prompts)
    encode_batch = fast.encode_batch_fast if plain else fast.encode_batch
    for start in range(0, len(documents), _TEXTS_AT_ONCE):
        texts = documents.texts[start : start + _TEXTS_AT_ONCE]
        yield from encode_batch(texts, add_special_tokens=not documents.from_template)


def _end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        name = tokenizer.name_or_path or "the tokenizer"
        raise JloraError(f"{name}: expected an end token (eos_token), which texts end in; found none")
    return tokenizer.eos_token_id


def _find_learnt(encoding: Encoding, documents: Documents, index: int) -> tuple[np.ndarray, int, bool]:
    """Finds which tokens of one text are learnt.

    Returns:
      (bool (tokens,): whether each is learnt; number of prompt tokens; whether a token spans prompt and completion).
    """
    answer, learnt = documents.prompts[index], np.ones(len(encoding.ids), bool)
    if not answer and documents.learnt is None:
        return learnt, 0, False
    starts, ends = np.array(encoding.offsets, np.int64).reshape(-1, 2).T
    if documents.learnt is not None:
        learnt = np.zeros(len(starts), bool)
        for start, end in documents.learnt[index]:
            learnt |= (starts < end) & (ends > start)
    prompt = int(np.sum(np.maximum.accumulate(ends) <= answer)) if answer else 0
    return learnt, prompt, not documents.from_template and bool(np.any((starts < answer) & (answer < ends)))
