"""Handles rows that cannot be read: raises the first error, or leaves them out and counts them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from jlora.errors import JloraError

Row = TypeVar("Row")
_NAMED = 5
"""How many errors of left-out rows are shown."""


def read_each(rows: Iterable[int], read: Callable[[int], Row], skip: bool | None) -> tuple[dict[int, Row], list[str]]:
    """Returns ({row: `read(row)`}, the errors of the rows that are left out).

    Both are in the order of `rows`; no rows give ({}, []).

    Args:
      read: called once with each row's number; a JloraError means that the row is bad.
      skip: `data.skip_bad_rows`: true leaves bad rows out, false raises the first error and suggests the key; None, for
        a command without such a key, raises the first error as it is.

    Raises:
      JloraError: a row cannot be read, unless `skip`; or no row is left.
    """
    found, errors = {}, []
    for row in rows:
        try:
            found[row] = read(row)
        except JloraError as error:
            if skip is None:
                raise
            if not skip:
                hint = "data.skip_bad_rows=true leaves such rows out and counts them"
                said = str(error)
                raise JloraError(f"{said}{'' if said.endswith(('.', '!', '?')) else '.'} {hint}") from error
            errors.append(str(error))
    if errors and not found:
        raise JloraError(
            f"expected a row that can be read; found none in {len(errors):,}. The first error: {errors[0]}"
        )
    return found, errors


def note_left_out(split: str, errors: Sequence[str], rows: int) -> list[str]:
    """Returns a list of one note, with the number of left-out rows and the first errors; [] if there are none.

        train: 2 of 10 rows left out (data.skip_bad_rows):
          first error
          second error

    The first five errors are in it, then `and N more`. `split` is the name in front; `rows` is the number of rows
    before any was left out.
    """
    if not errors:
        return []
    more = [f"and {len(errors) - _NAMED:,} more"] * (len(errors) > _NAMED)
    lines = "".join(f"\n  {line}" for line in [*errors[:_NAMED], *more])
    return [f"{split}: {len(errors):,} of {rows:,} rows left out (data.skip_bad_rows):{lines}"]
