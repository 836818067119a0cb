"""Turns a book into the rows of a character: finds the conversations, makes pairs, holds out the last of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jlora.errors import JloraError
from train.books.attribution import same_name
from train.books.pairs import SHORTEST, Exchange, dialogue_pairs, narration_pairs, shorten_pairs
from train.books.play import is_play, read_play
from train.books.prose import read_prose
from train.books.quotes import find_marks
from train.books.read_book import paragraphs
from train.books.speeches import Dialogue

ENOUGH = 50
"""With fewer pairs of dialogue than this, the narration is used too."""
HELD_OUT = 0.1
"""The share of the pairs that is held out for validation: the last of the book. The cut may be in a conversation."""
_LEAST = 2


@dataclass(frozen=True)
class VoiceRows:
    """The rows of a character.

    Attributes:
      train: chats, one question and one answer each, as the format `messages` has them.
      validation: the same, from the end of the book.
      counts: {what was counted: how many}, in the order in which the book was read.
      form: how the book writes speech, in words.
      speakers: the names that the book gives, the most frequent first, with their speeches.
      is_narrated: whether the narration is used.
    """

    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    counts: Counter[str]
    form: str
    speakers: list[tuple[str, int]]
    is_narrated: bool


def make_rows(text: str, name: str, speaker: Sequence[str], most: int | None = None) -> VoiceRows:
    """Makes the rows of a character from the text of a book.

    Args:
      name: the book's name in errors.
      speaker: the names under which the book has the character (`Elizabeth`, `Lizzy`), in upper or lower case; `I`
        for a first-person narrator; none for the voice of the narration alone.
      most: how many pairs are used, spread evenly over the book; all by default.

    Raises:
      JloraError: the book has fewer than two pairs; an empty name, or one that no speaker of the book has.
    """
    counts: Counter[str] = Counter()
    parts = paragraphs(text)
    counts["paragraphs"] = len(parts)
    form, conversations = _read(parts, counts)
    found = _count_speeches(conversations, counts)
    names = frozenset(given.strip().rstrip(".").lower() for given in speaker)
    if "" in names:
        raise JloraError("--speaker: expected a name, found an empty one")
    _require_known(names, found)
    pairs = dialogue_pairs(conversations, names, counts) if names else []
    counts["pairs of dialogue"] = len(pairs)
    is_narrated = len(pairs) < ENOUGH
    if is_narrated:
        told = narration_pairs(parts, counts)
        counts["pairs of narration"] = len(told)
        pairs = sorted([*pairs, *told], key=lambda pair: pair.paragraph)
    if len(pairs) < _LEAST:
        raise JloraError(
            f"{name}: expected at least {_LEAST} pairs of paragraphs, each of {SHORTEST} characters or more and with a "
            f"blank line between them; found {len(pairs)} in {len(parts):,} paragraphs of {len(text):,} characters"
        )
    if most is not None and len(pairs) > most:
        counts["pairs left out, evenly over the book"] = len(pairs) - most
        pairs = [pairs[place * len(pairs) // most] for place in range(most)]
    train, validation = _split(shorten_pairs(pairs, counts))
    return VoiceRows([*map(_chat, train)], [*map(_chat, validation)], counts, form, found.most_common(), is_narrated)


def _require_known(names: frozenset[str], found: Counter[str]) -> None:
    """Raises JloraError if the book names speakers, and the character is none of them."""
    if names and found and not any(same_name(speaker, names) for speaker in found):
        given = " ".join(sorted(names))
        often = ", ".join(name for name, _ in found.most_common(8))
        raise JloraError(
            f"--speaker {given}: expected a speaker whom the book names, found none; the most frequent are {often}."
            " Without --speaker the narration answers"
        )


def _read(parts: Sequence[str], counts: Counter[str]) -> tuple[str, list[Dialogue]]:
    """Returns (how the book writes speech, its conversations)."""
    if is_play(parts):
        return "a play: the speaker's name before each speech", read_play(parts, counts)
    if (marks := find_marks(parts)) is None:
        return "no quoted speech", []
    return f"prose: {marks} opens a speech", read_prose(parts, marks, counts)


def _count_speeches(conversations: Sequence[Dialogue], counts: Counter[str]) -> Counter[str]:
    speeches = [speech for conversation in conversations for speech in conversation]
    counts["conversations"] = len(conversations)
    for how in ("named", "alternating", "unknown"):
        counts[f"speeches, the speaker {how}"] = sum(speech.how == how for speech in speeches)
    return Counter(speech.speaker for speech in speeches if speech.speaker)


def _split(pairs: Sequence[Exchange]) -> tuple[Sequence[Exchange], Sequence[Exchange]]:
    """Returns the pairs for training and for validation; pairs whose replies end in one paragraph stay together."""
    begin = len(pairs) - max(1, round(HELD_OUT * len(pairs)))
    while begin > 1 and pairs[begin - 1].paragraph == pairs[begin].paragraph:
        begin -= 1
    return pairs[:begin], pairs[begin:]


def _chat(pair: Exchange) -> dict[str, Any]:
    turns = {"user": pair.prompt, "assistant": pair.reply}
    return {"messages": [{"role": role, "content": content} for role, content in turns.items()]}
