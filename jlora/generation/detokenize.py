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
_MOST_SEEN = 64
"""After this many tokens, those before the last `_CONTEXT` are no longer decoded with the next one."""


class TextDecoder:
    """Decodes the ids of a text one by one, to pieces of whole characters that join to the tokenizer's text of all ids.

    Special tokens are left out, and so is a character that the last ids leave incomplete.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, before: Sequence[int] = ()) -> None:
        """`before`: the ids that precede the text; it may continue their last word."""
        self._tokenizer = tokenizer
        self._seen = list(before[-_CONTEXT:])
        self._shown = len(self._text())

    def push(self, token: int) -> str:
        """Returns the characters that the token completes, often ""."""
        self._seen.append(int(token))
        # Decode the ids before it again: the text of a token may depend on them.
        text = self._text()
        if len(text) <= self._shown or text.endswith(_UNFINISHED):
            return ""
        piece, self._shown = text[self._shown :], len(text)
        if len(self._seen) > _MOST_SEEN:  # so that a long text does not take quadratic time
            self._seen = self._seen[-_CONTEXT:]
            self._shown = len(self._text())
        return piece

    def _text(self) -> str:
        return self._tokenizer.decode(self._seen, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class StopMatcher:
    """Ends a text before the first stop string, which may span pieces of it.

    Attributes:
      is_stopped: whether a stop string has been found.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.is_stopped = False
        self._stops = stops
        self._held = ""

    def push(self, piece: str) -> str:
        """Returns the text that is now certain to come before any stop string."""
        text = self._held + piece
        ends = [place for place in map(text.find, self._stops) if place >= 0]
        self.is_stopped = bool(ends)
        sure = min(ends) if ends else len(text) - _beginning_of_a_stop(text, self._stops)
        self._held = "" if ends else text[sure:]
        return text[:sure]

    def finish(self) -> str:
        """Returns what was held back because a stop string might have begun there; call it at the end of the text."""
        held, self._held = self._held, ""
        return held


def decode_stream(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int], before: Sequence[int] = ()) -> Iterator[str]:
    """Yields the pieces of `TextDecoder` that are not empty.

    Args:
      ids: the tokens, one after another.
      before: the ids that precede the text, which is not yielded; it may continue their last word.
    """
    decoder = TextDecoder(tokenizer, before)
    yield from filter(None, map(decoder.push, ids))


def until(pieces: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Yields the text before the first stop string, then stops iterating; a stop string may span pieces.

    Without a stop string in the text, or with `stops` (), it is the whole text. Its pieces may be others than the given
    ones, also empty: only the joined text is fixed.
    """
    matcher = StopMatcher(stops)
    for piece in pieces:
        yield matcher.push(piece)
        if matcher.is_stopped:
            return
    yield matcher.finish()


def _beginning_of_a_stop(text: str, stops: Sequence[str]) -> int:
    """Returns how many characters at the end of the text may be the beginning of a stop string."""
    return max((_beginning_of(stop, text) for stop in stops), default=0)


def _beginning_of(stop: str, text: str) -> int:
    lengths = range(min(len(stop) - 1, len(text)), 0, -1)  # the longest first: it ends the search where texts repeat
    return next((n for n in lengths if text.endswith(stop[:n])), 0)
