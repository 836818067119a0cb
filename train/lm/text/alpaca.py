"""Converts rows of instructions to text with the template of Stanford Alpaca."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jlora.errors import JloraError
from jlora.files.unicode_text import require_text
from train.data.table_files import Table

_KEY = "data.format=alpaca"
_PREAMBLE = (
    "Below is an instruction that describes a task{with_input}. "
    "Write a response that appropriately completes the request."
)
_REQUEST = "### Instruction:\n{instruction}\n\n{shown}### Response:\n"


def alpaca(table: Table, end: str | None) -> Callable[[int], tuple[str, tuple[tuple[int, int], ...]]]:
    """Returns a function that converts a row (counted from 0) to (text, the spans of its answers, at least one).

    A span is (begin, end) in characters of the text. The answers are the history's, with `end` included (None: no such
    token), and the last one, which ends the text and has no `end`. The parts of the text, with a blank line between
    them:

        Below is an instruction that describes a task. Write a response that appropriately completes the request.
        ### Instruction:\\n{instruction}
        ### Input:\\n{input}
        ### Response:\\n{output}

    With an input the first sentence ends ", paired with an input that provides further context."; without one the third
    part is missing. Optional columns are `input`; `system`, which replaces the first part; and `history`, a list of
    earlier [instruction, response] pairs, which come before the row's own as the parts Instruction and Response +
    `end`.

    Raises:
      JloraError: there is no column `instruction` or `output`. The returned function: a field is not text, or a history
        is not a list of pairs.
    """
    instructions = table.texts_by_row("instruction", _KEY)
    outputs = table.texts_by_row("output", _KEY)

    def read(row: int) -> tuple[str, tuple[tuple[int, int], ...]]:
        instruction, output = instructions(row), outputs(row)
        given = _optional(table, "input", row)
        context = ", paired with an input that provides further context" if given else ""
        text = (_optional(table, "system", row) or _PREAMBLE.format(with_input=context)) + "\n\n"
        answers = []
        for asked, answer in _history(table, row):
            text += _REQUEST.format(instruction=asked, shown="")
            answers.append((len(text), len(text) + len(answer + (end or ""))))
            text += f"{answer}{end or ''}\n\n"
        shown = f"### Input:\n{given}\n\n" if given else ""
        text += _REQUEST.format(instruction=instruction, shown=shown)
        return text + output, (*answers, (len(text), len(text + output)))

    return read


def _optional(table: Table, column: str, row: int) -> str:
    given = table.cell(column, row)
    return require_text("" if given is None else given, f"{table.where(row)}, column {column!r} ({_KEY})")


def _history(table: Table, row: int) -> list[Any]:
    found, where = table.cell("history", row) or [], f"{table.where(row)}, column 'history' ({_KEY})"
    if not (isinstance(found, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in found)):
        raise JloraError(f"{where}: expected a list of [instruction, response]; found {ascii(found)[:60]}")
    return [[require_text(part, where) for part in pair] for pair in found]
