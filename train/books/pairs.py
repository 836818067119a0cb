"""Makes pairs of what was said and what a character replied, or of one paragraph and the next."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from train.books.attribution import same_name
from train.books.sentences import first_sentences, last_sentences
from train.books.speeches import Dialogue

SHORTEST = 40
"""Characters of a paragraph of narration; headings and page numbers are shorter."""
LONGEST_PROMPT = 300
LONGEST_REPLY = 500
"""Characters, in whole sentences; together they are some 200 tokens, and the template adds 30."""
_HAS_WORDS = re.compile(r"\w")


class Exchange(NamedTuple):
    """What was said before, and what the character says then; `paragraph` is the number of the one where that ends."""

    prompt: str
    reply: str
    paragraph: int = 0


def dialogue_pairs(conversations: Sequence[Dialogue], names: frozenset[str], counts: Counter[str]) -> list[Exchange]:
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
                pairs.append(Exchange(conversation[place - 1].text, speech.text, speech.paragraph))
    return pairs


def narration_pairs(paragraphs: Sequence[str], counts: Counter[str]) -> list[Exchange]:
    """Returns a pair for each two paragraphs that follow each other and are longer than a heading."""
    texts = [" ".join(paragraph.split()) for paragraph in paragraphs]
    long = [(number, text) for number, text in enumerate(texts) if len(text) >= SHORTEST]
    counts[f"paragraphs shorter than {SHORTEST} characters, left out"] += len(texts) - len(long)
    return [Exchange(before, after, number) for (_, before), (number, after) in itertools.pairwise(long)]


def shorten_pairs(pairs: Sequence[Exchange], counts: Counter[str]) -> list[Exchange]:
    """Cuts prompts above 300 characters to their last sentences, and replies above 500 to their first.

    A reply answers the end of what was said before. Cut at the end of a sentence, it still teaches where to stop. One
    sentence is kept even if it is longer than the limit.

    Args:
      counts: gets the numbers of prompts and of replies that were cut.
    """
    short = [
        Exchange(last_sentences(prompt, LONGEST_PROMPT), first_sentences(reply, LONGEST_REPLY), paragraph)
        for prompt, reply, paragraph in pairs
    ]
    for what, most, place in (("prompts", LONGEST_PROMPT, 0), ("replies", LONGEST_REPLY, 1)):
        cut = sum(old[place] != new[place] for old, new in zip(pairs, short, strict=True))
        counts[f"{what} cut to {most} characters"] = cut
    return short
