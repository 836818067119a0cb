"""Detects the format of a table's rows, and chooses the settings that depend on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from jlora.errors import JloraError
from train.data.table_files import Table

if TYPE_CHECKING:
    from train.lm.config import DataSection

Format = Literal["text", "prompt_completion", "alpaca", "sharegpt", "messages"]
TooLong = Literal["split", "cut", "drop", "error"]


def detect_format(table: Table, config: DataSection) -> Format:
    """Detects the format from the table's columns; if several fit, chats come before pairs, and pairs before text.

    In this order: a column of chats (`config.messages`, messages or conversations) is "sharegpt" if the first turn of
    the first chat with turns has the key `from`, else "messages"; the columns `config.prompt` and `config.completion`
    are "prompt_completion", instruction and output "alpaca", `config.text` is "text".

    Raises:
      JloraError: the columns fit no format.
    """
    if config.messages or {"messages", "conversations"} & set(table.columns):
        return (
            "sharegpt"
            if _says_from(table.column(chat_column(table, "messages", config), "data.messages"))
            else "messages"
        )
    known: dict[Format, tuple[str, ...]] = {
        "prompt_completion": (config.prompt, config.completion),
        "alpaca": ("instruction", "output"),
        "text": (config.text,),
    }
    for form, columns in known.items():
        if set(columns) <= set(table.columns):
            return form
    expected = "; ".join(f"{', '.join(columns)} ({form})" for form, columns in known.items())
    raise JloraError(
        f"{table.name}: expected the columns of a format: messages; conversations (sharegpt); {expected}; found "
        f"{', '.join(table.columns)}. data.messages, data.prompt, data.completion and data.text name them, for example"
        " data.prompt=question data.completion=answer"
    )


def used_columns(table: Table, form: Format, config: DataSection) -> set[str]:
    """Returns the names of all columns that this format reads, whether the table has them or not.

    `config.text` for text; instruction, input, output, system and history for alpaca; `config.prompt` and
    `config.completion` for prompt_completion; the column of `chat_column` for the others. If the rows are chats
    (`has_chats`), also system, tools and chat_template_kwargs.
    """
    of_chats = {"system", "tools", "chat_template_kwargs"}
    if form == "text":
        return {config.text}
    if form == "alpaca":
        return {"instruction", "input", "output", "system", "history"}
    if form == "prompt_completion":
        return {config.prompt, config.completion} | (of_chats if has_chats(table, form, config) else set())
    return {chat_column(table, form, config)} | of_chats


def has_chats(table: Table, form: Format, config: DataSection) -> bool:
    """Returns whether the rows are chats, which a template renders.

    Prompts and completions are chats if the first prompt that is not None is a list. Formats sharegpt and messages
    always are, text and alpaca never.
    """
    if form == "prompt_completion":
        prompts = table.columns.get(config.prompt, [])
        return isinstance(next((prompt for prompt in prompts if prompt is not None), None), list)
    return form in ("sharegpt", "messages")


def chat_column(table: Table, form: Format, config: DataSection) -> str:
    """Returns `data.messages`, else the one of `messages` and `conversations` that the table has.

    If it has both or neither, it is `conversations` for the format sharegpt and `messages` for others.
    """
    if config.messages:
        return config.messages
    names = ("conversations", "messages") if form == "sharegpt" else ("messages", "conversations")
    return next((name for name in names if name in table.columns), names[0])


def answers_only(form: Format, config: DataSection) -> bool:
    """Returns `data.completion_only_loss`, or if it is null, whether the format has prompts and completions.

    These are prompt_completion and alpaca.

    Raises:
      JloraError: it is true for plain text, which has no completions.
    """
    if config.completion_only_loss is None:
        return form in ("prompt_completion", "alpaca")
    if config.completion_only_loss and form == "text":
        raise JloraError(
            "data.completion_only_loss=true: expected prompts and completions, or chats; found plain text, of which all"
            " is learnt. Leave the key out, or name the columns of the two with data.prompt and data.completion"
        )
    return config.completion_only_loss


def too_long(form: Format, config: DataSection) -> TooLong:
    """Returns `data.too_long`, or if it is null, "split" for plain text and "cut" for everything else."""
    return config.too_long or ("split" if form == "text" else "cut")


def _says_from(chats: list[object]) -> bool:
    """Returns whether the first turn of the first chat with turns has the key `from`, as ShareGPT's do."""
    turns = (chat[0] for chat in chats if isinstance(chat, list) and chat)
    first = next(turns, None)
    return isinstance(first, dict) and "from" in first
