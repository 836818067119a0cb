"""Paragraphs of a play become conversations: one for each scene."""

from __future__ import annotations

from collections import Counter

from train.books.play import is_play, read_play

PLAY = [
    "Persons: Ann, Bob.",
    "ACT I.",
    "Scene I. A street.",
    "[Enter Ann.]",
    "Ann.\nWho's there?\n[Aside.] Nobody.",
    "BOB:\nNay, answer me:\nstand [draws] still.",
    "[Exit\nAnn.]",
    "And who goes there?",
    "Ann.\nLong live the king!",
    "Scene II. A hall.",
    "BOB:\nHe.",
]


def test_a_play_is_told_from_prose():
    assert is_play(PLAY)
    assert not is_play(["Chapter 1", "Mr. Bob.\nHe lived here.", *['"Who are you?" said Ann.'] * 9])
    assert not is_play([])


def test_scenes_are_conversations_without_directions():
    counts = Counter()
    first, second = read_play(PLAY, counts)
    assert [(speech.speaker, speech.text) for speech in first] == [
        ("Ann", "Who's there?\nNobody."),
        ("BOB", "Nay, answer me:\nstand  still.\nAnd who goes there?"),
        ("Ann", "Long live the king!"),
    ]
    assert [(speech.speaker, speech.text) for speech in second] == [("BOB", "He.")]
    assert counts == {
        "speeches": 4,
        "headings": 3,
        "stage directions": 2,
        "paragraphs that go on with a speech": 1,
        "paragraphs before the first speech of a scene": 1,
    }
