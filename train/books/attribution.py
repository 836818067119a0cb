"""Finds who speaks in a paragraph, from words such as `said Alice`, `Mr. Bennet replied` or `she cried`."""

from __future__ import annotations

import re

_VERBS = (
    "said|says|cried|replied|answered|returned|asked|exclaimed|continued|added|observed|repeated|whispered|remarked|"
    "began|inquired|enquired|demanded|shouted|muttered|murmured|called|interrupted|resumed|rejoined|sighed|went on"
)
_PRONOUN = "(?i:he|she|they|we|you|it|who|this|that|there)"
_ARTICLE = "(?i:the|a|an|his|her|my|our|their)"
_ADJECTIVE = "(?i:poor|little|old|young|dear|good|other|same|first|second)"
_TITLE = r"Mr\.|Mrs\.|Dr\.|St\.|Mr|Mrs|Dr"
_NO_NAME = r"(?!(?:And|But|Then|So|When|As|If|In|At|On|To|For|With|Not|Nothing)\b)"
_WORD = r"[A-Z][\w’'-]*"
_SUBJECT = (
    rf"(?P<pronoun>I|{_PRONOUN})\b"
    rf"|(?:{_ADJECTIVE}\s)*(?P<name>{_NO_NAME}(?:(?:{_TITLE})\s)?{_WORD}(?:\s{_WORD}){{0,3}})"
    rf"|{_ARTICLE}\s(?:[a-z]+\s)?(?P<capital>{_WORD}(?:\s{_WORD}){{0,3}})"
    rf"|(?P<noun>{_ARTICLE}\s(?:{_ADJECTIVE}\s)*[a-z]+)"
)
_VERB_FIRST = re.compile(rf"\b(?:{_VERBS})\s(?:{_SUBJECT})")
_NAME_FIRST = re.compile(rf"(?<![\w’'-])(?:{_SUBJECT})\s(?:[a-z]+ly\s|then\s|only\s)?(?:{_VERBS})\b")
_THOUGHT = re.compile(rf"\bthought\s(?:{_SUBJECT})|\bto\s(?:him|her|my|it)self\b")
_CLAUSE = re.compile(rf",?\s(?:{_VERBS})\s(?:{_SUBJECT})(?:\s[a-z]+ly)?[,.]")

NARRATOR = "I"
"""The name of a book's own narrator, who says `said I`."""


def attribute(told: str) -> str | None:
    """Returns who speaks in a paragraph; None if it does not say so, or says only `he` or `she`.

    The first rule that finds a name decides:
      1. a verb of speaking, then a name: `said Alice`, `cried her mother`, `said the March Hare`, `said I`;
      2. a name, then a verb: `Alice replied`.

    Args:
      told: the paragraph without its speech, as `quotes.separate` returns it.
    """
    for pattern in (_VERB_FIRST, _NAME_FIRST):
        for match in pattern.finditer(told):
            if (name := _name_in(match)) is not None:
                return name
    return None


def is_thought(told: str) -> bool:
    """Returns whether the paragraph's quote is thought, or said to oneself."""
    return _THOUGHT.search(told) is not None


def cut_clause(speech: str) -> tuple[str, str]:
    """Cuts `, said Stephen.` out of speech that only a dash marks; returns (the speech, what was cut out)."""
    found = _CLAUSE.search(speech)
    if found is None:
        return speech, ""
    before, after = speech[: found.start()], speech[found.end() :]
    if before[-1:] not in ".!?,":
        before += "," if found[0].endswith(",") else "."
    return f"{before} {after.lstrip()}".strip(), found[0]


def same_name(name: str | None, names: frozenset[str]) -> bool:
    """Returns whether `name` is one of `names`, which are in lower case."""
    return name is not None and name.rstrip(".").lower() in names


def _name_in(match: re.Match[str]) -> str | None:
    """Returns the subject of a verb of speaking, if that is a name."""
    if match["pronoun"] == NARRATOR:
        return NARRATOR
    return match["name"] or match["capital"] or (match["noun"] or "").lower() or None
