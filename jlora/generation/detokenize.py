"""Decodes token ids to text while they are generated: whole characters, up to a stop string."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_UNFINISHED = "\ufffd"
"""What the bytes of a character decode to until all of them have been generated."""
_CONTEXT = 8
"""How many of the tokens before the text are decoded with it, to decide whether it begins with a space."""


def decode_stream(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int], before: Sequence[int] = ()) -> Iterator[str]:
    """Yields the text of the ids in pieces of whole characters, which join to the tokenizer's text of all ids.

    Special tokens are left out, and so is a character that the last ids leave incomplete.

    Args:
      ids: the tokens, one after another.
      before: the ids that precede the text, which is not yielded; it may continue their last word.
    """
    seen = list(before[-_CONTEXT:])

    def text() -> str:
        return tokenizer.decode(seen, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    shown = len(text())
    for token in ids:
        seen.append(int(token))
        # Decode all ids again: the text of a token may depend on all tokens before it.
        now = text()
        if len(now) > shown and not now.endswith(_UNFINISHED):
            yield now[shown:]
            shown = len(now)


def until(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Yields the text before the first stop string, then stops iterating; a stop string may span pieces.

    Without a stop string in the text, or with `stops` (), it is the whole text. Its pieces may be others than the given
    ones, also empty: only the joined text is fixed.
    """
    held = ""
    for piece in pieces:
        held += piece
        ends = [place for place in map(held.find, stops) if place >= 0]
        if ends:
            yield held[: min(ends)]
            return
        sure = len(held) - _beginning_of_a_stop(held, stops)
        yield held[:sure]
        held = held[sure:]
    yield held


def _beginning_of_a_stop(text: str, stops: Sequence[str]) -> int:
    """Returns how many characters at the end of the text may be the beginning of a stop string."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
