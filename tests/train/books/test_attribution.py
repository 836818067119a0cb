"""Who speaks is found from the words around the speech."""

from __future__ import annotations

import time

import pytest

from train.books.attribution import attribute, cut_clause, is_thought, same_name


@pytest.mark.parametrize(
    ("told", "speaker"),
    [
        ("| said Alice, |", "Alice"),
        ("| cried Mrs. Bennet impatiently.", "Mrs. Bennet"),
        ("| said the March Hare.", "March Hare"),
        ("| said poor Alice |", "Alice"),
        ("| replied her mother |", "her mother"),
        ("| said the old man.", "the old man"),
        ("The captain answered: |", "the captain"),
        ("Mr. Bennet dryly replied |", "Mr. Bennet"),
        ("And then Alice said: |", "Alice"),
        ("| said I.", "I"),
        ("I answered |", "I"),
        ("| said he. Then Darcy added |", "Darcy"),
        ("| said he.", None),
        ("She replied |", None),
        ("| said nothing.", None),
        ("It was late.", None),
        ("", None),
    ],
)
def test_the_speaker_is_named(told, speaker):
    assert attribute(told) == speaker


@pytest.mark.parametrize(
    ("told", "thought"), [("| thought Alice |", True), ("| said Alice to herself.", True), ("| said he.", False)]
)
def test_a_thought_is_not_said(told, thought):
    assert is_thought(told) == thought


@pytest.mark.parametrize(
    ("speech", "cut"),
    [
        ("I am, said Stephen.", ("I am.", ", said Stephen.")),
        ("No, said Mr Deasy, I paid my way.", ("No, I paid my way.", ", said Mr Deasy,")),
        ("What? said he. Go on.", ("What? Go on.", " said he.")),
        ("Nothing to cut.", ("Nothing to cut.", "")),
    ],
)
def test_the_clause_is_cut_out_of_speech_after_a_dash(speech, cut):
    assert cut_clause(speech) == cut


def test_names_are_compared_in_lower_case_without_a_point():
    assert same_name("HAM", frozenset({"ham"}))
    assert same_name("Ham.", frozenset({"ham"}))
    assert not same_name("Hamlet", frozenset({"ham"}))
    assert not same_name(None, frozenset({"ham"}))


@pytest.mark.parametrize("piece", ["Alice ", "said ", "the poor ", "the old ", "Mr. ", "| ", "A"])
def test_a_hostile_paragraph_takes_no_time(piece):
    start = time.process_time()
    attribute(piece * 50_000)
    is_thought(piece * 50_000)
    cut_clause(piece * 50_000)
    assert time.process_time() - start < 5
