"""Reads the conversations of a play, in which the speaker's name is alone in the line before each speech."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from train.books.speeches import Dialogue, Speech, join_speeches

_SPEECH = re.compile(r"(?P<name>[A-Z][\w.’' -]{0,30}?)[.:]\n(?P<said>.+)", re.DOTALL)
_DIRECTION = re.compile(r"\[[^\[\]]*\]?")
_HEADING = re.compile(r"(?:act|scene|prologue|epilogue)\b", re.IGNORECASE)
_LEAST_SHARE = 0.3


def is_play(paragraphs: Sequence[str]) -> bool:
    """Returns whether at least 30 % of the paragraphs begin with the line of a speaker who speaks twice or more."""
    names = Counter(match["name"] for match in map(_SPEECH.match, paragraphs) if match)
    speeches = sum(count for count in names.values() if count > 1)
    return speeches > 1 and speeches >= _LEAST_SHARE * len(paragraphs)


def read_play(paragraphs: Sequence[str], counts: Counter[str]) -> list[Dialogue]:
    """Returns the conversations of a play; the heading of an act or scene ends one.

    Stage directions are left out: they are in brackets. The lines of a speech stay apart. A paragraph without a name
    goes on with the speech before it.
    """
    conversations: list[Dialogue] = [[]]
    for number, paragraph in enumerate(paragraphs):
        match = _SPEECH.match(paragraph)
        if match is None and _HEADING.match(paragraph):
            counts["headings"] += 1
            conversations.append([])
            continue
        said = _spoken(match["said"] if match else paragraph)
        if not said:
            counts["stage directions"] += 1
        elif match is not None:
            counts["speeches"] += 1
            conversations[-1].append(Speech(match["name"], said, "named", number))
        elif conversations[-1]:
            counts["paragraphs that go on with a speech"] += 1
            last = conversations[-1].pop()
            conversations[-1].append(Speech(last.speaker, f"{last.text}\n{said}", last.how, number))
        else:
            counts["paragraphs before the first speech of a scene"] += 1
    return [join_speeches(speeches) for speeches in conversations if speeches]


def _spoken(text: str) -> str:
    lines = (line.strip() for line in _DIRECTION.sub("", text).split("\n"))
    return "\n".join(line for line in lines if line)
