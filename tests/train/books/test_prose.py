"""Paragraphs of a novel become conversations."""

from __future__ import annotations

from collections import Counter

from train.books.prose import read_prose


def _read(paragraphs, marks='"'):
    counts = Counter()
    found = read_prose(paragraphs, marks, counts)
    return [[(speech.speaker, speech.text) for speech in conversation] for conversation in found], counts


def test_a_conversation_ends_at_a_paragraph_without_speech():
    found, counts = _read(['"Who are you?" said Ann.', '"Bob," said Bob.', '"Oh."', "Night fell.", '"Hm!" cried Ann.'])
    assert found == [[("Ann", "Who are you?"), ("Bob", "Bob."), ("Ann", "Oh.")], [("Ann", "Hm!")]]
    assert counts["paragraphs with speech"] == 4
    assert counts["paragraphs without speech"] == 1


def test_speech_goes_on_in_the_next_paragraph():
    found, counts = _read(['"It is long," said Ann. "Once', '"there was a king."', '"Was there?" said Bob.'])
    assert found == [[("Ann", "It is long. Once there was a king."), ("Bob", "Was there?")]]
    assert counts["paragraphs that leave a quote open"] == 1


def test_a_quote_that_is_never_closed_takes_nobody_elses_words():
    found, _ = _read(['"It is long, said Ann.', '"No," said Bob.', '"Yes," said Ann.'])
    assert found == [[("Ann", "It is long, said Ann."), ("Bob", "No."), ("Ann", "Yes.")]]


def test_a_thought_is_left_out_and_ends_the_conversation():
    found, counts = _read(['"No!" said Bob.', '"He is mad," thought Ann.', '"Yes," said Ann.'])
    assert found == [[("Bob", "No!")], [("Ann", "Yes.")]]
    assert counts["paragraphs with thoughts"] == 1


def test_dashes():
    found, _ = _read(["— Who is there? said Ann.", "— Bob, said Bob.", "She opened."], "—")
    assert found == [[("Ann", "Who is there?"), ("Bob", "Bob.")]]
