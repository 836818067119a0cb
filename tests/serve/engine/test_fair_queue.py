"""Adapters take turns, and a request is answered once, after its last row."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve.engine.adapters import Record
from serve.engine.fair_queue import Row, RowsRequest, Turns
from serve.engine.requests import AdapterRefusedError, BusyError

A, B, C = (Record(name, Path(name), labels=("no", "yes")) for name in "abc")


def _waiting(*requests):
    """Turns in which rows of (adapter, lengths) wait."""
    turns = Turns()
    for record, lengths in requests:
        request = RowsRequest(record, len(lengths))
        for place, length in enumerate(lengths):
            turns.add(Row(request, place, (1,), (), length))
    return turns


def _play(turns, ready=(A, B, C), most=2):
    """The batches that are chosen, as the names of the rows' adapters, until there are no more rows of those ready."""
    batches = []
    while first := next((record for record in turns.records() if record in ready), None):
        rows = turns.choose(first, ready.__contains__, most)
        assert len({row.length for row in rows}) == 1
        turns.remove(rows)
        batches.append("".join(row.record.name for row in rows))
    return batches


def test_an_adapter_with_many_rows_lets_others_pass():
    assert _play(_waiting((A, [8] * 6), (B, [8]), (C, [8] * 2))) == ["ab", "ca", "ac", "aa", "a"]


def test_rows_of_other_lengths_have_their_turns_too():
    assert _play(_waiting((A, [8] * 6), (B, [16] * 2))) == ["aa", "bb", "aa", "aa"]
    assert _play(_waiting((A, [16, 8, 16]), (B, [8, 8, 8]))) == ["aa", "ba", "bb"]


def test_one_that_is_not_ready_is_passed_and_has_the_next_turn():
    turns = _waiting((A, [8]), (B, [8]), (C, [8] * 3))
    assert _play(turns, ready=(B, C)) == ["bc", "cc"]
    assert turns.records() == [A]
    turns.add(Row(RowsRequest(B, 1), 0, (1,), (), 8))
    assert _play(turns, most=1) == ["a", "b"]


def test_each_adapter_has_a_fair_share_of_what_may_wait():
    turns = _waiting((A, [8] * 10))
    assert turns.share(A, 10) == 0
    assert turns.share(B, 10) == 5
    turns.add(Row(RowsRequest(B, 1), 0, (1,), (), 8))
    assert (turns.share(A, 10), turns.share(B, 10), turns.share(C, 10)) == (-1, 4, 3)
    assert turns.share(A, 20) == 9
    assert len(turns) == 11


def _place(request, place, value):
    request.add(place, [value, 1 - value])


def test_a_request_is_answered_after_its_last_row_in_the_order_of_its_rows():
    request = RowsRequest(A, 2)
    _place(request, 1, 0.25)
    assert not request.answer.done()
    _place(request, 0, 0.5)
    found = request.answer.result()
    assert (found.labels, found.probabilities) == (("no", "yes"), [[0.5, 0.5], [0.25, 0.75]])
    request.fail(BusyError("too late"))
    assert request.answer.exception() is None


def test_the_first_error_is_the_answer():
    request = RowsRequest(A, 1)
    request.fail(AdapterRefusedError("damaged"))
    request.fail(BusyError("ended"))
    _place(request, 0, 0.5)
    with pytest.raises(AdapterRefusedError, match="damaged"):
        request.answer.result()


def test_classes_that_change_between_two_rows_are_an_error():
    request = RowsRequest(Record("d", Path("d"), labels=("no", "yes")), 2)
    _place(request, 0, 0.5)
    request.record.labels = ("art", "law", "sport")
    request.add(1, [0.1, 0.2, 0.7])
    with pytest.raises(BusyError, match="its classes have changed"):
        request.answer.result()


def test_rows_that_nobody_waits_for_are_removed():
    turns = _waiting((A, [8] * 3), (B, [8]), (A, [8]))
    first, *_, last = (row.request for row in turns if row.record is A)
    assert first.answer.cancel()
    turns.remove_answered()
    assert [(row.record, row.request is last) for row in turns] == [(A, True), (B, False)]
    _place(first, 0, 0.5)
    _place(last, 0, 0.5)
    turns.remove_answered()
    assert turns.records() == [B]
