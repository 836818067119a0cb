"""Texts are cut at the end of a sentence."""

from __future__ import annotations

import pytest

from train.books.sentences import first_sentences, last_sentences

TEXT = "One is here. Mr. Two is there! “Three?” Four"


@pytest.mark.parametrize(
    ("most", "first", "last"),
    [
        (100, TEXT, TEXT),
        (40, "One is here. Mr. Two is there! “Three?”", "Mr. Two is there! “Three?” Four"),
        (32, "One is here. Mr. Two is there!", "Mr. Two is there! “Three?” Four"),
        (20, "One is here.", "“Three?” Four"),
        (1, "One is here.", "Four"),
    ],
)
def test_whole_sentences_remain(most, first, last):
    assert first_sentences(TEXT, most) == first
    assert last_sentences(TEXT, most) == last


@pytest.mark.parametrize("text", ["", "No end", "One. "])
def test_a_single_sentence_is_whole(text):
    assert first_sentences(text, 1) == text.rstrip()
    assert last_sentences(text, 1) == text
