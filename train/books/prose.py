"""Reads the conversations of a novel: quoted speech, and who says it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from train.books.attribution import attribute, cut_clause, is_thought
from train.books.quotes import Marks, Paragraph, separate
from train.books.speeches import Dialogue, Speech, join_speeches, name_alternating


def read_prose(paragraphs: Sequence[str], marks: Marks, counts: Counter[str]) -> list[Dialogue]:
    """Returns the conversations of a novel.

    Each paragraph with speech is a speech. What one paragraph leaves open goes on in the next one. A paragraph without
    speech ends the conversation, and so does one with a thought.

    Args:
      marks: what `find_marks` returns.
      counts: gets how many paragraphs there are of each kind.
    """
    conversations: list[list[Speech]] = [[]]
    is_open = False
    for number, paragraph in enumerate(paragraphs):
        parts = _read_paragraph(paragraph, marks)
        is_spoken = bool(parts.said) and not is_thought(parts.told)
        counts[_kind(parts, is_spoken)] += 1
        counts["paragraphs that leave a quote open"] += parts.is_open
        if is_spoken:
            _append(conversations[-1], parts, number, is_open)
        else:
            conversations.append([])
        is_open = is_spoken and parts.is_open
    return [name_alternating(join_speeches(speeches)) for speeches in conversations if speeches]


def _read_paragraph(paragraph: str, marks: Marks) -> Paragraph:
    parts = separate(paragraph, marks)
    if marks != "—" or not parts.said:
        return parts
    said, clause = cut_clause(parts.said)
    return Paragraph(said, f"|{clause}", False)


def _kind(parts: Paragraph, is_spoken: bool) -> str:
    if is_spoken:
        return "paragraphs with speech"
    return "paragraphs with thoughts" if parts.said else "paragraphs without speech"


def _append(speeches: list[Speech], parts: Paragraph, number: int, is_open: bool) -> None:
    """Appends a paragraph to the conversation; to the last speech if that is open and nobody else is named."""
    speaker = attribute(parts.told)
    if is_open and speaker in (None, speeches[-1].speaker):
        begun = speeches.pop()
        speeches.append(Speech(begun.speaker, f"{begun.text} {parts.said}", begun.how, number))
    else:
        speeches.append(Speech(speaker, parts.said, "named" if speaker else "unknown", number))
