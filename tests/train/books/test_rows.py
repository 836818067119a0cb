"""A book becomes rows; the counts add up; hostile books are refused or told as narration."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from jlora.errors import JloraError
from train.books.read_book import read_book
from train.books.rows import ENOUGH, make_rows

BOOKS = Path(__file__).parents[4] / "shared" / "data"
NARRATION = [f"Paragraph {number} tells of many things, and of the weather on that day." for number in range(30)]


def _rows(text, *speaker):
    return make_rows(text, "book.txt", speaker)


def _replies(rows):
    return [chat["messages"][1]["content"] for chat in [*rows.train, *rows.validation]]


def test_dialogue_is_enough_where_there_is_enough():
    exchange = '"Number {0}?" asked Bob.\n\n"It is {0}," said Ann.\n\n'
    rows = _rows("".join(exchange.format(number) for number in range(ENOUGH)), "Ann")
    assert _replies(rows) == [f"It is {number}." for number in range(ENOUGH)]
    assert (len(rows.train), len(rows.validation)) == (45, 5)
    assert rows.train[0]["messages"] == [
        {"role": "user", "content": "Number 0?"},
        {"role": "assistant", "content": "It is 0."},
    ]
    assert not rows.is_narrated
    assert rows.speakers == [("Bob", 50), ("Ann", 50)]
    assert rows.form == 'prose: " opens a speech'


def test_a_name_is_found_in_either_case_and_with_a_point():
    text = "".join(f"HAM.\nWords {number}.\n\nKing.\nMore {number}.\n\n" for number in range(60))
    assert len(_replies(_rows(text, "Ham"))) == 59
    assert _replies(_rows(text, "ham.", "nobody")) == _replies(_rows(text, "Ham"))


@pytest.mark.parametrize("speaker", [(), ("Ann",)])
def test_a_book_without_quotes_is_narrated(speaker):
    rows = _rows("\n\n".join(NARRATION), *speaker)
    assert _replies(rows) == NARRATION[1:]
    assert rows.is_narrated
    assert rows.form == "no quoted speech"


def test_the_most_are_spread_evenly_over_the_book():
    rows = make_rows("\n\n".join(NARRATION), "book.txt", (), most=10)
    assert _replies(rows) == [NARRATION[1 + place * 29 // 10] for place in range(10)]
    assert len(rows.validation) == 1
    assert rows.counts["pairs left out, evenly over the book"] == 19
    assert _replies(make_rows("\n\n".join(NARRATION), "book.txt", (), most=29)) == NARRATION[1:]


def test_few_replies_are_kept_and_the_narration_added():
    rows = _rows("\n\n".join(['"Who is there?" asked Bob.', '"It is I," said Ann.', *NARRATION]), "Ann")
    assert _replies(rows)[0] == "It is I."
    assert rows.counts["pairs of dialogue"] == 1
    assert len(_replies(rows)) == 1 + rows.counts["pairs of narration"]


def test_dialogue_and_narration_are_held_out_from_the_end_of_the_book():
    scene = '"Is it {0}?" asked Bob.\n\n"Surely it is number {0}, as I have told you before now," said Ann.\n\n'
    told = "Chapter {0} tells of many things that happened, and of the weather.\n\n"
    rows = _rows("".join((scene + told).format(number) for number in range(30)), "Ann")
    assert rows.is_narrated
    held_out = [chat["messages"][1]["content"] for chat in rows.validation]
    assert any(reply.startswith("Surely it is number 29") for reply in held_out)
    learnt = " ".join(chat["messages"][1]["content"] for chat in rows.train)
    assert "number 29" not in learnt
    assert "Chapter 29" not in learnt


def test_an_empty_name_is_refused():
    with pytest.raises(JloraError, match="--speaker: expected a name, found an empty one"):
        _rows("\n\n".join(NARRATION), "Ann", " ")


def test_no_row_is_both_learnt_and_held_out():
    rows = _rows("\n\n".join(NARRATION))
    learnt, held_out = ({chat["messages"][1]["content"] for chat in part} for part in (rows.train, rows.validation))
    assert learnt & held_out == set()


@pytest.mark.parametrize("text", ["One huge paragraph. " * 10_000, '"' * 5000, "a", "— ", "A.\nb", "\n\n".join("abc")])
def test_a_text_that_is_no_book_is_refused(text):
    with pytest.raises(JloraError, match=r"book\.txt: expected at least 2 pairs.*; found"):
        _rows(text, "Ann")


@pytest.mark.parametrize("seed", range(20))
def test_random_marks_end_in_rows_or_an_error(seed):
    draw = random.Random(seed)
    pieces = [*"\"'“”‘’—«»[(\n", "\n\n", "said Ann", "Ann.", "He went. ", ", "]
    text = " ".join(draw.choices(pieces, k=3000))
    try:
        rows = _rows(text, "Ann")
    except JloraError:
        return
    assert all(turn["content"].strip() for chat in rows.train for turn in chat["messages"])


@pytest.mark.skipif(not BOOKS.is_dir(), reason="needs ../shared/data")
@pytest.mark.parametrize(
    ("file", "speaker", "least", "reply"),
    [
        ("gutenberg/alice_in_wonderland.txt", ["Alice"], 140, "I've had nothing yet, so I can't take more."),
        ("gutenberg/sherlock_holmes.txt", ["Holmes", "Sherlock Holmes"], 300, "Ah, but I was recommended to you."),
        ("shakespeare/tiny_shakespeare.txt", ["ROMEO"], 150, "Is the day so young?"),
    ],
)
def test_real_books(file, speaker, least, reply):
    rows = _rows(read_book(BOOKS / file, file), *speaker)
    replies = _replies(rows)
    assert len(replies) >= least
    assert reply in replies
    assert not rows.is_narrated
    paragraphs = sum(count for what, count in rows.counts.items() if what.startswith("paragraphs with"))
    assert "shakespeare" in file or paragraphs == rows.counts["paragraphs"]
