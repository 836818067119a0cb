"""Pairs of dialogue and of narration."""

from __future__ import annotations

from collections import Counter

from train.books.pairs import LONGEST_PROMPT, LONGEST_REPLY, Exchange, dialogue_pairs, narration_pairs, shorten_pairs
from train.books.speeches import Speech


def test_each_answer_of_the_character_is_a_pair():
    conversation = [Speech(name, text, "named", 7) for name, text in [("Ann", "Hm."), ("Bob", "So?"), ("Ann", "So.")]]
    more = [Speech(None, "...", "unknown"), Speech("Annie", "Oh.", "alternating")]
    counts = Counter()
    pairs = dialogue_pairs([conversation, more], frozenset({"ann", "annie"}), counts)
    assert pairs == [("So?", "So.", 7)]
    assert counts == {
        "speeches of the character, named": 2,
        "speeches of the character, alternating": 1,
        "dropped: nothing was said before": 1,
        "dropped: no words": 1,
    }


def test_each_paragraph_answers_the_one_before():
    counts = Counter()
    long = [f"Paragraph {number}\nof more than forty characters, in two lines." for number in range(3)]
    pairs = narration_pairs([long[0], "CHAPTER II", *long[1:]], counts)
    flat = [text.replace("\n", " ") for text in long]
    assert pairs == [(flat[0], flat[1], 2), (flat[1], flat[2], 3)]
    assert list(counts.values()) == [1]


def test_long_texts_are_cut_and_counted():
    counts = Counter()
    long = Exchange("The first. " + "a" * LONGEST_PROMPT, "b" * LONGEST_REPLY + ". The last.", 5)
    short = Exchange("a" * LONGEST_PROMPT, "b" * LONGEST_REPLY + ".", 5)
    assert shorten_pairs([Exchange("Short.", "Short.", 4), long], counts) == [("Short.", "Short.", 4), short]
    assert sorted(counts.values()) == [1, 1]
