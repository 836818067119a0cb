"""What is known of a prompt is what the same reader has read."""

from __future__ import annotations

import pytest

from serve.engine.prefixes import FOREVER, Prefixes, Reader

BASE, ALICE, BOB = Reader(None, FOREVER), Reader(1, 0), Reader(2, 0)
LATE = Reader(1, 3)


@pytest.mark.parametrize(
    ("kept", "asked", "ids", "expected"),
    [
        (ALICE, ALICE, (1, 2, 3, 4, 5), 4),
        (ALICE, ALICE, (1, 2, 9), 2),
        (ALICE, BOB, (1, 2, 3, 4), 0),
        (ALICE, BASE, (1, 2, 3, 4), 0),
        (BASE, ALICE, (1, 2, 3, 4), 0),
        (BASE, LATE, (1, 2, 3, 4), 3),
        (LATE, BASE, (1, 2, 3, 4), 3),
        (LATE, ALICE, (1, 2, 3, 4), 0),
        (LATE, Reader(1, 2), (1, 2, 3, 4), 2),
        (LATE, Reader(2, 2), (1, 2, 3, 4), 2),
        (BASE, BASE, (1, 2), 2),
    ],
)
def test_the_common_beginning_counts_where_the_reader_is_the_same(kept, asked, ids, expected):
    prefixes = Prefixes(3)
    prefixes.keep(kept, (1, 2, 3, 4), "memory")
    assert prefixes.find(asked, ids) == (expected, "memory" if expected else None)


def test_the_longest_is_found_and_the_oldest_forgotten():
    prefixes = Prefixes(2)
    prefixes.keep(BASE, (1,), "short")
    prefixes.keep(BASE, (1, 2, 3), "long")
    assert prefixes.find(BASE, (1, 2, 3, 4)) == (3, "long")
    assert prefixes.find(BASE, (1, 9)) == (1, "short")  # which makes it the newest
    prefixes.keep(BASE, (5,), "other")
    assert prefixes.find(BASE, (1, 2, 3)) == (1, "short")


def test_what_an_adapter_has_read_is_forgotten_with_it():
    prefixes = Prefixes(5)
    for reader in (BASE, ALICE, BOB):
        prefixes.keep(reader, (1, 2), reader)
    prefixes.forget(1)
    assert prefixes.find(ALICE, (1, 2)) == (0, None)
    assert prefixes.find(BOB, (1, 2)) == (2, BOB)


def test_none_are_kept_if_none_may_be():
    prefixes = Prefixes(0)
    prefixes.keep(BASE, (1,), "memory")
    assert prefixes.find(BASE, (1,)) == (0, None)
