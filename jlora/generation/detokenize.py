"""Token ids as text while they come: whole characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_UNFINISHED = "\ufffd"
"""What the bytes of a character decode to until the last of them is there."""
_CONTEXT = 8
"""How many tokens before the text decide whether it begins with a space."""


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int], before: Sequence[int] = ()) -> Iterator[str]:
    """The text of the ids in pieces, each of whole characters; together they are what the tokenizer makes of all.

    Special tokens are left out, and so is a character that the last ids leave unfinished.

    Args:
      before: the ids that the text follows, whose last word it may go on with.
    """
    seen = list(before[-_CONTEXT:])

    def text() -> str:
        return tokenizer.decode(seen, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    shown = len(text())
    for token in ids:
        seen.append(int(token))
        # Decoded anew from the start: what a token says may depend on all before it.
        now = text()
        if len(now) > shown and not now.endswith(_UNFINISHED):
            yield now[shown:]
            shown = len(now)


def until(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """The pieces up to the first of the stop strings, which may span pieces; after it no more are asked for."""
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
    """How many characters at the text's end may be the beginning of a stop string."""
    return max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
