"""Rows that cannot be read: the first one is an error, or all are left out and counted."""

from __future__ import annotations

import pytest

from jlora.errors import JloraError
from train.data.bad_rows import note_left_out, read_each


def _read(row):
    if row % 2:
        raise JloraError(f"row {row} is odd{'!' if row == 3 else '.' if row == 5 else ''}")
    return row * 10


def test_bad_rows_are_left_out_with_their_errors():
    assert read_each(range(4), _read, True) == ({0: 0, 2: 20}, ["row 1 is odd", "row 3 is odd!"])
    assert read_each([], _read, False) == ({}, [])
    with pytest.raises(JloraError, match=r"found none in 2\. The first error: row 1 is odd$"):
        read_each([1, 3], _read, True)


@pytest.mark.parametrize(("row", "said"), [(1, "row 1 is odd."), (3, "row 3 is odd!"), (5, "row 5 is odd.")])
def test_the_first_bad_row_is_an_error_that_names_the_key(row, said):
    with pytest.raises(JloraError) as caught:
        read_each([0, row], _read, False)
    assert str(caught.value) == f"{said} data.skip_bad_rows=true leaves such rows out and counts them"
    with pytest.raises(JloraError, match=rf"^row {row} is odd[.!]?$"):
        read_each([0, row], _read, None)


def test_the_note_has_the_first_five():
    assert note_left_out("train", [], 3) == []
    lines = note_left_out("train", [f"error {i}" for i in range(7)], 10)[0].split("\n")
    assert lines[0] == "train: 7 of 10 rows left out (data.skip_bad_rows):"
    assert lines[1:] == [*(f"  error {i}" for i in range(5)), "  and 2 more"]
