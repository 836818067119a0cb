"""Shows rows as the model will see them, and marks what is not learnt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from jlora.printable import counted
from train.lm.data.examples import Examples
from train.lm.data.packing import Packed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LEGEND = "«...» is read but not learnt; the first token never is, as nothing comes before it."


def preview(rows: Examples | Packed, tokenizer: PreTrainedTokenizerBase, count: int) -> str:
    """Returns the first `count` rows as text, special tokens included, with «what is not learnt» marked.

    A line that explains the marks comes first, then each row with its number, from 1, and its counts of tokens; blank
    lines are between them. Packed examples are shown one below another, each in a line that begins with [number].
    """
    shown = [_row(rows, index, tokenizer) for index in range(min(count, len(rows)))]
    return "\n\n".join([_LEGEND, *shown])


def _row(rows: Examples | Packed, index: int, tokenizer: PreTrainedTokenizerBase) -> str:
    part = slice(rows.offsets[index], rows.offsets[index + 1])
    ids, learn = rows.ids[part], rows.learn[part]
    title = f"--- row {index + 1}: {counted(len(ids), 'token')}, {learn.sum()} learnt"
    if not isinstance(rows, Packed):
        return f"{title} ---\n{_mark_unlearnt(ids, learn, tokenizer)}"
    starts = np.flatnonzero(rows.position_ids[part] == 0)
    segments = zip(np.split(ids, starts[1:]), np.split(learn, starts[1:]), strict=True)
    texts = [f"[{number}] {_mark_unlearnt(*segment, tokenizer)}" for number, segment in enumerate(segments, 1)]
    padding = rows.size - len(ids)
    return "\n".join(
        [f"{title}, {counted(len(texts), 'example')} that do not see each other, {padding} padding ---", *texts]
    )


def _mark_unlearnt(ids: np.ndarray, learn: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the text of the tokens, with the parts that are not learnt in «»."""
    ends = [*(np.flatnonzero(np.diff(learn)) + 1).tolist(), len(ids)]
    pieces, before = [], ""
    for end in ends:
        text = tokenizer.decode(ids[:end].tolist(), skip_special_tokens=False)
        piece, before = text[len(before) :], text
        pieces.append(piece if learn[end - 1] else f"«{piece}»")
    return "".join(pieces)
