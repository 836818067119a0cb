"""Speakers that the book does not name are found from the order of speeches, for a short way."""

from __future__ import annotations

from train.books.speeches import REACH, Speech, join_speeches, name_alternating


def _speeches(names):
    """Speeches whose speakers are letters; `.` is one that the book does not name."""
    return [Speech(None if n == "." else n, str(i), "unknown" if n == "." else "named") for i, n in enumerate(names)]


def _named(names):
    return "".join(speech.speaker or "." for speech in name_alternating(_speeches(names)))


def test_two_who_alternate_are_named_forwards_and_backwards():
    assert _named("AB..") == "ABAB"
    assert _named("..AB") == "ABAB"
    assert _named("A.A.") == "A.A."
    assert _named("A..") == "A.A"


def test_a_name_reaches_only_so_far():
    assert _named("A" + "." * 8) == "A.A.A...."
    assert REACH == 4


def test_nothing_is_known_of_a_third_speaker():
    assert _named("ABC") == "ABC"
    assert _named("AB.C") == "ABAC"
    assert _named("...") == "..."
    assert _named("") == ""


def test_how_a_speaker_was_found_is_kept():
    assert [speech.how for speech in name_alternating(_speeches("AB."))] == ["named", "named", "alternating"]


def test_speeches_of_one_named_speaker_are_one():
    joined = join_speeches(_speeches("AAB..A"))
    assert [(speech.speaker, speech.text) for speech in joined] == [
        ("A", "0 1"), ("B", "2"), (None, "3"), (None, "4"), ("A", "5"),
    ]  # fmt: skip
