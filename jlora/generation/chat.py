"""A chat as the prompt of a model: the tokens up to where the assistant's turn begins."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jlora.errors import JloraError
from jlora.generation.chat_template import ChatTemplate, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class _Chat:
    """A chat to continue; its attributes are those of `TemplateVariables`."""

    turns: list[Turn]
    tools: list[dict[str, Any]] | None
    where: str
    variables: dict[str, Any] = dataclasses.field(default_factory=dict)


def chat_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Turn],
    *,
    tools: list[dict[str, Any]] | None = None,
    where: str = "messages",
) -> list[int]:
    """Returns the chat's tokens, up to where the model's turn begins.

    Args:
      tokenizer: writes the chat with its chat template, which sees today's day in UTC.
      messages: {"role": "user", "content": TEXT}, and so on, at least one.
      tools: JSON schemas of the functions that the model may call.
      where: begins an error about the chat.

    Raises:
      JloraError: the tokenizer has no chat template, or the template fails on the chat.
    """
    source = tokenizer.name_or_path or "the model"
    if not tokenizer.chat_template:
        raise JloraError(f"{where}: expected a tokenizer with a chat template, found none in {source}")
    template = ChatTemplate(tokenizer, datetime.datetime.now(datetime.UTC).date(), source)
    turns = list(messages)
    text = template.write(_Chat(turns, tools, where), turns, call=True).text
    return tokenizer(text, add_special_tokens=False)["input_ids"]
