"""What the tokenizer is given: the rows of a table as texts, with the characters that are to be learnt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jlora.errors import JloraError
from train.lm.formats import Format, answers_only, chat_column
from train.lm.templates import Span, require_template, write_chat
from train.lm.turns import require_answer, turns_of_messages, turns_of_sharegpt
from train.tables import Table, require_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from train.lm.config import DataSection

_ALPACA = (
    "Below is an instruction that describes a task{with_input}. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n{input}### Response:\n"
)


@dataclass(frozen=True)
class Documents:
    """n texts of one file or hub set; lists of equal length.

    Attributes:
      texts: as the tokenizer takes them, chats written out by their template.
      learnt: the spans of each text whose tokens are learnt; None: all of every text.
      prompts: characters of each text before its first answer; 0 in plain text.
      rows: each text's data row, counted from 0.
      source: the file or hub set, as the user gave it.
      form: the format of the rows.
    """

    texts: list[str]
    learnt: list[tuple[Span, ...]] | None
    prompts: list[int]
    rows: list[int]
    source: str
    form: Format

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def from_template(self) -> bool:
        """Whether a chat template wrote the texts, which brings its own first and last tokens."""
        return self.form in ("sharegpt", "messages")

    def where(self, index: int) -> str:
        """`file, data row 7`: how an error names the text at `index`."""
        return f"{self.source}, data row {self.rows[index] + 1}"


def documents_of(
    table: Table, rows: Sequence[int], form: Format, config: DataSection, tokenizer: PreTrainedTokenizerBase
) -> Documents:
    """The texts of the table's `rows` (counted from 0).

    Raises:
      JloraError: a column that is not there; a row whose field is missing or no text; a chat that is none, or whose
        roles are out of order; a tokenizer without a chat template, or one that the chat does not fit.
    """
    rows, only = list(rows), answers_only(form, config)
    if form == "text":
        texts = table.texts(config.text, "data.text", rows)
        return Documents(texts, None, [0] * len(texts), rows, table.name, form)
    if form in ("sharegpt", "messages"):
        return _chats(table, rows, form, chat_column(table, form, config), tokenizer, only)
    if form == "alpaca":
        prompts, answers = _alpaca_prompts(table, rows), table.texts("output", "data.format=alpaca", rows)
    else:
        prompts = table.texts(config.prompt, "data.prompt", rows)
        answers = table.texts(config.completion, "data.completion", rows)
    texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    starts = [len(prompt) for prompt in prompts]
    spans: list[tuple[Span, ...]] = [((start, len(text)),) for start, text in zip(starts, texts, strict=True)]
    return Documents(texts, spans if only else None, starts, rows, table.name, form)


def _alpaca_prompts(table: Table, rows: list[int]) -> list[str]:
    """The prompts of Stanford Alpaca, with an input or without one."""
    key, inputs = "data.format=alpaca", table.columns.get("input")
    prompts = []
    for row, instruction in zip(rows, table.texts("instruction", key, rows), strict=True):
        given = inputs[row] if inputs and inputs[row] is not None else ""
        require_text(given, f"{table.where(row)}, column 'input' ({key})")
        context = ", paired with an input that provides further context" if given else ""
        shown = f"### Input:\n{given}\n\n" if given else ""
        prompts.append(_ALPACA.format(with_input=context, instruction=instruction, input=shown))
    return prompts


def _chats(
    table: Table, rows: list[int], form: Format, column: str, tokenizer: PreTrainedTokenizerBase, only: bool
) -> Documents:
    chats, tools = table.column(column, "data.messages"), table.columns.get("tools")
    require_template(tokenizer)
    written = []
    for row in rows:
        where = f"{table.where(row)}, column {column!r} (data.messages)"
        turns = (turns_of_sharegpt if form == "sharegpt" else turns_of_messages)(chats[row], where)
        if only:
            require_answer(turns, where)
        functions = _functions(tools[row], f"{table.where(row)}, column 'tools'") if tools else None
        written.append(write_chat(turns, functions, tokenizer, where, only))
    spans = [chat.answers for chat in written] if only else None
    prompts = [chat.prompt for chat in written]
    return Documents([chat.text for chat in written], spans, prompts, rows, table.name, form)


def _functions(tools: Any, where: str) -> list[Any] | None:
    """The functions that a chat may call: a list of JSON schemas, or its JSON text."""
    try:
        found = json.loads(tools) if isinstance(tools, str) else tools
    except json.JSONDecodeError as error:
        raise JloraError(f"{where}: not JSON ({error.msg}): {tools[:60]}") from error
    if found is not None and not (isinstance(found, list) and all(isinstance(tool, dict) for tool in found)):
        raise JloraError(f"{where}: expected a list of JSON schemas; found {ascii(found)[:60]}")
    return found or None
