"""Reads a row as a chat: its turns, the tools that it may call, and more variables of its template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jlora.errors import JloraError
from jlora.files.unicode_text import require_text
from train.data.table_files import Table
from train.lm.text.formats import Format, chat_column
from train.lm.text.turns import Turn, from_json, take_weights, turns_of_messages, turns_of_sharegpt

if TYPE_CHECKING:
    from train.lm.config import DataSection

_GIVEN = ("messages", "tools", "documents", "add_generation_prompt")
"""Variables of a template that rows must not set with `chat_template_kwargs`."""

_Turns = tuple[list[Turn], int, str]
"""(turns of a row, how many of them are the prompt, their location for errors)."""


@dataclass(frozen=True)
class Conversation:
    """A chat.

    Attributes:
      turns: at least one: {"role": ..., "content": ..., other keys}.
      prompt: how many turns are the prompt, whose answers are not learnt.
      unlearnt: indices of the turns that the row excludes from learning.
      tools: JSON schemas of the functions that the assistant may call, or None.
      variables: more variables of the template.
      where: file, row and columns, for errors.
    """

    turns: list[Turn]
    prompt: int
    unlearnt: frozenset[int]
    tools: list[dict[str, Any]] | None
    variables: dict[str, Any]
    where: str


def conversations(table: Table, form: Format, config: DataSection) -> Callable[[int], Conversation]:
    """Returns a function that reads a row (counted from 0) of a table of chats.

    It also reads the columns `system` (a first turn, unless the chat has the same one), `tools` and
    `chat_template_kwargs` (the `variables`; both may be JSON text) if the table has them. An empty cell is as no
    column.

    Args:
      form: "messages" or "sharegpt", whose chats are in the column of `chat_column`; or "prompt_completion", whose two
        columns, `config.prompt` and `config.completion`, must both be lists of turns: the first are the `prompt`.

    Raises:
      JloraError: the column is missing. The returned function: a cell is not a list of turns, or an error of
        `turns_of_messages`; tools are not a list of schemas; a system prompt is not text, or differs from the chat's
        own; a variable has the name of one that the chat sets.
    """
    read_turns = _pairs(table, config) if form == "prompt_completion" else _chats(table, form, config)

    def read(row: int) -> Conversation:
        turns, prompt, place = read_turns(row)
        where = table.where(row)
        if system := table.cell("system", row):
            prompt += turns[0]["role"] != "system" and prompt > 0
            turns = _with_system(turns, system, f"{where}, column 'system'")
        turns, unlearnt = take_weights(turns, place)
        tools = _tools(table.cell("tools", row), f"{where}, column 'tools'")
        variables = _variables(table.cell("chat_template_kwargs", row), f"{where}, column 'chat_template_kwargs'")
        return Conversation(turns, prompt, unlearnt, tools, variables, place)

    return read


def _chats(table: Table, form: Format, config: DataSection) -> Callable[[int], _Turns]:
    column = chat_column(table, form, config)
    chats = table.column(column, "data.messages")
    turns_of = turns_of_sharegpt if form == "sharegpt" else turns_of_messages

    def read(row: int) -> _Turns:
        where = f"{table.where(row)}, column {column!r} (data.messages)"
        return turns_of(chats[row], where), 0, where

    return read


def _pairs(table: Table, config: DataSection) -> Callable[[int], _Turns]:
    """Reads prompts and completions that are lists of turns."""
    prompts = table.column(config.prompt, "data.prompt")
    completions = table.column(config.completion, "data.completion")

    def read(row: int) -> _Turns:
        where = f"{table.where(row)}, columns {config.prompt!r} and {config.completion!r}"
        parts = {"prompt": (config.prompt, prompts[row]), "completion": (config.completion, completions[row])}
        for key, (column, turns) in parts.items():
            if not (isinstance(turns, list) and turns):
                raise JloraError(
                    f"{table.where(row)}, column {column!r} (data.{key}): expected a list of turns, as in the first"
                    f" row; found {ascii(turns)[:60]}"
                )
        return turns_of_messages([*prompts[row], *completions[row]], where), len(prompts[row]), where

    return read


def _with_system(turns: list[Turn], system: Any, place: str) -> list[Turn]:
    require_text(system, place)
    if turns[0]["role"] != "system":
        return [{"role": "system", "content": system}, *turns]
    if turns[0]["content"] != system:
        raise JloraError(
            f"{place}: expected no system prompt, or the same one as in the chat; found another: {system[:60]!r}"
        )
    return turns


def _tools(found: Any, where: str) -> list[dict[str, Any]] | None:
    """Reads the functions that a chat may call: a list of JSON schemas, or its JSON text."""
    tools = _decode_cell(found, where)
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise JloraError(f"{where}: expected a list of JSON schemas; found {ascii(tools)[:60]}")
    return tools


def _variables(found: Any, where: str) -> dict[str, Any]:
    """Reads more variables of the template: an object, or its JSON text."""
    variables = _decode_cell(found, where) or {}
    if not isinstance(variables, dict):
        expected = 'expected an object such as {"enable_thinking": false}'
        raise JloraError(f"{where}: {expected}; found {ascii(found)[:60]}")
    if given := [name for name in variables if name in _GIVEN]:
        raise JloraError(f"{where}: expected other variables than {', '.join(_GIVEN)}; found {given[0]!r}")
    return variables


def _decode_cell(found: Any, where: str) -> Any:
    """Returns the value of a cell, decoded if it is JSON text; None if it is empty."""
    if isinstance(found, str):
        found = from_json(found, where) if found.strip() else None
    return found or None
