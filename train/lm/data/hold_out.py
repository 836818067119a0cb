"""Holds out the ends of a few long texts for validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from train.lm.data.rows import TableRows
from train.lm.text.documents import Documents
from train.lm.text.formats import too_long

if TYPE_CHECKING:
    from train.lm.config import DataSection


def are_few_long_texts(parts: Sequence[TableRows], config: DataSection) -> bool:
    """Returns whether the rows are so few and long plain texts that their ends are held out instead of whole rows.

    This is so if `validation_fraction` of them is less than one row (0.1 of 9 rows), and they have more than
    `max_length` characters on average. Rows that are not text have no characters. False if a part has another format
    than text, or if `too_long` is neither null nor split.

    Args:
      parts: the rows of each table; the texts are in the column `config.text`.
    """
    count = sum(map(len, parts))
    plain = all(part.form == "text" and too_long(part.form, config) == "split" for part in parts)
    if not plain or count * config.validation_fraction >= 1:
        return False
    cells = [part.table.cell(config.text, row) for part in parts for row in part.rows.tolist()]
    return sum(len(cell) for cell in cells if isinstance(cell, str)) > count * config.max_length


def hold_out_ends(documents: Documents, fraction: float) -> tuple[Documents, Documents]:
    """Splits plain texts into (beginnings, ends); an end is the last `fraction` of a text, by characters.

    The cut is after a paragraph, else after a line, else after a word, if one ends at most a tenth of the end's length
    before it; else exactly there. The boundary belongs to the beginning. Both results have all texts, in their order;
    only `texts` is changed.
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
