"""Makes pairs of what was said and what a character replied, or of one paragraph and the next."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from train.books.attribution import same_name
from train.books.speeches import Dialogue

_SHORTEST = 40
"""Characters of a paragraph of narration; headings and page numbers are shorter."""
_HAS_WORDS = re.compile(r"\w")


class Reply(NamedTuple):
    """What was said before, and what the character says then."""

    prompt: str
    reply: str


def dialogue_pairs(conversations: Sequence[Dialogue], names: frozenset[str], counts: Counter[str]) -> list[Reply]:
    """Returns a pair for each speech of the character that answers another's speech.

    Args:
      names: the names of the character, in lower case.
      counts: gets the speeches of the character, and those of them that are dropped.
    """
    pairs = []
    for conversation in conversations:
        for place, speech in enumerate(conversation):
            if not same_name(speech.speaker, names):
                continue
            counts[f"speeches of the character, {speech.how}"] += 1
            if place == 0:
                counts["dropped: nothing was said before"] += 1
            elif not (_HAS_WORDS.search(speech.text) and _HAS_WORDS.search(conversation[place - 1].text)):
                counts["dropped: no words"] += 1
            else:
                pairs.append(Reply(conversation[place - 1].text, speech.text))
    return pairs


def narration_pairs(paragraphs: Sequence[str], counts: Counter[str]) -> list[Reply]:
    """Returns a pair for each two paragraphs that follow each other and are longer than a heading."""
    texts = [" ".join(paragraph.split()) for paragraph in paragraphs]
    long = [text for text in texts if len(text) >= _SHORTEST]
    counts[f"paragraphs shorter than {_SHORTEST} characters, left out"] += len(texts) - len(long)
    return [Reply(before, after) for before, after in itertools.pairwise(long)]
