"""The speeches of a book, and the conversations that they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

How = Literal["named", "alternating", "unknown"]


@dataclass(frozen=True)
class Speech:
    """What one speaker says before another one does.

    Attributes:
      speaker: a name; None if it is not known.
      how: how the speaker was found: the book names him, or he alternates with another; or not at all.
      paragraph: the number of the book's paragraph in which it ends.
    """

    speaker: str | None
    text: str
    how: How
    paragraph: int = 0


Dialogue = list[Speech]
"""Speeches that answer each other, in order."""

REACH = 4
"""Speeches after which a name in the book no longer says who alternates: a third speaker may have come in."""


def join_speeches(speeches: Sequence[Speech]) -> Dialogue:
    """Joins speeches that follow each other and have the same named speaker."""
    joined: Dialogue = []
    for speech in speeches:
        if joined and speech.speaker is not None and speech.speaker == joined[-1].speaker:
            text = f"{joined[-1].text} {speech.text}"
            joined[-1] = replace(joined[-1], text=text, paragraph=speech.paragraph)
        else:
            joined.append(speech)
    return joined


def name_alternating(conversation: Dialogue) -> Dialogue:
    """Names speakers that the book does not: in a conversation of two, each speaks every other time.

    A speech without a name gets the speaker of the one two before it, if somebody else speaks between them and the
    book names that speaker at most REACH speeches before. Then the same is done from the end.
    """
    return _fill(_fill(conversation)[::-1])[::-1]


def _fill(conversation: Dialogue) -> Dialogue:
    filled = list(conversation)
    named_at = [place if speech.speaker else None for place, speech in enumerate(filled)]
    for place in range(2, len(filled)):
        first, second, speech = filled[place - 2 : place + 1]
        named = named_at[place - 2]
        if speech.speaker is None and named is not None and place - named <= REACH and first.speaker != second.speaker:
            filled[place] = replace(speech, speaker=first.speaker, how="alternating")
            named_at[place] = named
    return filled
