"""The ends of a few long texts, held out for validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from train.lm.data.rows import Rows
from train.lm.text.documents import Documents
from train.lm.text.formats import too_long

if TYPE_CHECKING:
    from train.lm.config import DataSection


def are_few_long_texts(parts: Sequence[Rows], config: DataSection) -> bool:
    """Tells whether the rows are plain texts so few and long that their ends are held out instead of whole rows.

    They are too few for `validation_fraction` to be one row, and have more characters on average than `max_length`.
    Rows that are not text do not count.
    """
    count = sum(map(len, parts))
    plain = all(part.form == "text" and too_long(part.form, config) == "split" for part in parts)
    if not plain or count * config.validation_fraction >= 1:
        return False
    cells = [part.table.cell(config.text, row) for part in parts for row in part.rows.tolist()]
    return sum(len(cell) for cell in cells if isinstance(cell, str)) > count * config.max_length


def hold_out_ends(documents: Documents, fraction: float) -> tuple[Documents, Documents]:
    """(the beginnings, the ends) of plain texts: the last `fraction` of each, by characters.

    Cut after a paragraph, else after a line, else after a word, where one ends within a tenth of the fraction before.
    """
    places = [_place(text, fraction) for text in documents.texts]
    beginnings = [text[:place] for text, place in zip(documents.texts, places, strict=True)]
    ends = [text[place:] for text, place in zip(documents.texts, places, strict=True)]
    return replace(documents, texts=beginnings), replace(documents, texts=ends)


def _place(text: str, fraction: float) -> int:
    place = round((1 - fraction) * len(text))
    earliest = place - round(fraction * len(text) / 10)
    for boundary in ("\n\n", "\n", " "):
        found = text.rfind(boundary, earliest, place)
        if found >= 0:
            return found + len(boundary)
    return place
