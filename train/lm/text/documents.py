"""Converts the rows of a table to texts for the tokenizer, with the spans of characters to learn."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from train.data.bad_rows import read_each
from train.data.table_files import Table
from train.lm.text.alpaca import alpaca
from train.lm.text.chat_templates import Span, chat_template, write_chat
from train.lm.text.conversations import conversations
from train.lm.text.formats import Format, answers_only, has_chats
from train.lm.text.turns import require_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from train.lm.config import DataSection


class Document(NamedTuple):
    """A text of a row.

    Attributes:
      text: the whole text.
      learnt: its spans to learn, (begin, end) in characters; None means all.
      prompt: how many characters come before its first answer.
    """

    text: str
    learnt: tuple[Span, ...] | None
    prompt: int


@dataclass(frozen=True)
class Documents:
    """n texts of one file or hub set, as lists of equal length.

    Attributes:
      texts: the input of the tokenizer; chats are rendered by their template.
      learnt: the spans of each text whose tokens are learnt; None means all of every text.
      prompts: characters of each text before its first answer; 0 in plain text.
      rows: each text's data row, counted from 0.
      source: the file or hub set, as the user gave it.
      form: the format of the rows.
      from_template: whether a chat template wrote the texts, which has its own first and last tokens.
      unread: keys of turns and of `chat_template_kwargs`, and `tools`, that the rows have but the chat template does
        not use.
      left_out: the error of each row that was left out (`data.skip_bad_rows`).
    """

    texts: list[str]
    learnt: list[tuple[Span, ...]] | None
    prompts: list[int]
    rows: list[int]
    source: str
    form: Format
    from_template: bool = False
    unread: frozenset[str] = frozenset()
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    def where(self, index: int) -> str:
        """Returns the name of the text at `index` for errors: `file, data row 7`."""
        return f"{self.source}, data row {self.rows[index] + 1}"


def documents_of(
    table: Table,
    rows: Sequence[int],
    form: Format,
    config: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    day: datetime.date | None = None,
) -> Documents:
    """Returns the texts of the table's `rows` (counted from 0). Chat templates get `day` (None: today) as today.

    The texts are in the order of `rows`, one for each; with `data.skip_bad_rows`, rows that cannot be read are left
    out. `learnt` is None if the whole of every text is learnt.

    Raises:
      JloraError: a column is missing, a field is missing or not text, a chat is malformed or has roles out of order,
        the tokenizer has no chat template or one that fails on the chat, or no row is left.
    """
    unread: set[str] = set()
    read = _reader(table, form, config, tokenizer, day, unread)
    found, left_out = read_each(rows, read, config.skip_bad_rows)
    documents = list(found.values())
    has_spans = any(document.learnt is not None for document in documents)
    learnt = [((0, len(text)),) if spans is None else spans for text, spans, _ in documents]
    return Documents(
        texts=[document.text for document in documents],
        learnt=learnt if has_spans else None,
        prompts=[document.prompt for document in documents],
        rows=list(found),
        source=table.name,
        form=form,
        from_template=has_chats(table, form, config),
        unread=frozenset(unread),
        left_out=tuple(left_out),
    )


def _reader(
    table: Table,
    form: Format,
    config: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    day: datetime.date | None,
    unread: set[str],
) -> Callable[[int], Document]:
    """Returns a function that reads one row, counted from 0, and adds keys that the template ignores to `unread`."""
    only = answers_only(form, config)
    if form == "text":
        texts = table.texts_by_row(config.text, "data.text")
        return lambda row: Document(texts(row), None, 0)
    if has_chats(table, form, config):
        return _chat_reader(table, form, config, tokenizer, day, only, unread)
    if form == "alpaca":
        read = alpaca(table, tokenizer.eos_token)
    else:
        prompts = table.texts_by_row(config.prompt, "data.prompt")
        completions = table.texts_by_row(config.completion, "data.completion")

        def read(row: int) -> tuple[str, tuple[Span, ...]]:
            prompt, completion = prompts(row), completions(row)
            return prompt + completion, ((len(prompt), len(prompt) + len(completion)),)

    def document(row: int) -> Document:
        text, answers = read(row)
        return Document(text, answers if only else None, answers[0][0])

    return document


def _chat_reader(
    table: Table,
    form: Format,
    config: DataSection,
    tokenizer: PreTrainedTokenizerBase,
    day: datetime.date | None,
    only: bool,
    unread: set[str],
) -> Callable[[int], Document]:
    read = conversations(table, form, config)
    template = chat_template(tokenizer, config.chat_template, day)

    def document(row: int) -> Document:
        chat = read(row)
        if only:
            require_answer(chat.turns, chat.where)
        written = write_chat(chat, template, only)
        unread.update(template.unread(chat))
        return Document(*written)

    return document
