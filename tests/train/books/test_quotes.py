"""Speech is separated from what is told, with any marks; names and apostrophes are not speech."""

from __future__ import annotations

import time

import pytest

from train.books.quotes import find_marks, separate


@pytest.mark.parametrize(
    ("marks", "text"),
    [
        ('"', '"Well," said Alice, "I am late!"'),
        ("“", "“Well,” said Alice, “I am late!”"),
        ("‘", "‘Well,’ said Alice, ‘I am late!’"),
        ("'", "'Well,' said Alice, 'I am late!'"),
    ],
)
def test_each_kind_of_marks(marks, text):
    assert separate(text, marks) == ("Well, I am late!", "| said Alice, |", False)
    assert find_marks([text, "Narration.", text]) == marks


def test_guillemets_end_without_a_point():
    assert separate("«Je pars», dit-il.", "«") == ("Je pars", "|, dit-il.", False)


def test_a_dash_makes_the_whole_paragraph_speech():
    assert separate("— I am, said Stephen.", "—") == ("I am, said Stephen.", "|", False)
    assert separate("He—no.", "—") == ("", "He—no.", False)


@pytest.mark.parametrize("text", ['The "Lady Vain" sank.', 'It was "so" to him, and "no" to her.'])
def test_what_does_not_end_in_a_point_is_a_name(text):
    assert separate(text, '"') == ("", text, False)


def test_apostrophes_are_not_quotes():
    text = "'I don't know the boys' names, and 'tis late,' said Alice's sister by the 'ORANGE' jar."
    assert separate(text, "'").said == "I don't know the boys' names, and 'tis late."


def test_a_comma_ends_the_sentence_where_the_narration_does():
    assert separate('"So it ends," said she. "There are many," he said.', '"').said == "So it ends. There are many."
    assert separate('"So," said she, "it ends."', '"').said == "So, it ends."


def test_quotes_in_quotes_are_part_of_the_speech():
    assert separate("“He cried ‘No!’ and left,” said I.", "“").said == "He cried ‘No!’ and left."
    assert (
        separate("""'I should say "With what porpoise?"' said it.""", "'").said == 'I should say "With what porpoise?"'
    )


def test_a_quote_that_is_not_closed_is_open():
    assert separate('He said: "It was long ago', '"') == ("It was long ago", "He said: |", True)
    assert separate('"One." he said "Two', '"') == ("One. Two", "| he said |", True)


def test_a_book_without_quotes_has_no_marks():
    assert find_marks(["Once upon a time.", "The end."]) is None
    assert find_marks([]) is None


@pytest.mark.parametrize("marks", ['"', "“", "‘", "'", "«", "—"])
@pytest.mark.parametrize("piece", ["'a ", '"a, ', "“a ", "‘a b. ", "«", "— ", "' ", "A "])
def test_a_hostile_paragraph_takes_no_time(marks, piece):
    start = time.process_time()
    separate(piece * 100_000, marks)
    assert time.process_time() - start < 5
