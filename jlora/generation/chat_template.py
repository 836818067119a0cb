"""Writes chats with the chat template of a tokenizer."""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import jinja2

from jlora.errors import JloraError
from jlora.files.unicode_text import require_text
from jlora.generation.template_sandbox import Compiled, Rendered, compile_template, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turn = dict[str, Any]
"""{"role": ..., "content": ...}, and what else a template reads."""

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""The keys under which a turn may have its reasoning."""
_READ = _REASONING[:2]
"""The keys that templates read: a turn's reasoning is passed under both."""


class TemplateVariables(Protocol):
    """What a template needs of a chat; any object with these attributes is one.

    Attributes:
      turns: at least one {"role": ..., "content": ...}, and what else a template reads.
      tools: JSON schemas of the functions that the assistant may call, or None.
      variables: {name: value}, more variables of the template.
      where: the chat's place, for errors.
    """

    @property
    def turns(self) -> list[Turn]: ...
    @property
    def tools(self) -> list[dict[str, Any]] | None: ...
    @property
    def variables(self) -> dict[str, Any]: ...
    @property
    def where(self) -> str: ...


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer as a run or a server uses it.

    Attributes:
      tokenizer: has the template and the special tokens that it names.
      day: what the template sees as today.
      source: the name of the model that the template is from, for errors.
    """

    tokenizer: PreTrainedTokenizerBase
    day: datetime.date
    source: str

    def write(self, chat: TemplateVariables, turns: list[Turn], *, call: bool = False) -> Rendered:
        """Writes a chat with the template; with `call`, followed by the generation prompt.

        Args:
          chat: its tools and variables are what the template sees, its `where` begins an error.
          turns: the chat's turns, or the first of them: these are written.

        Raises:
          JloraError: the template cannot be compiled, fails on the chat, or takes too long (`template_limits`); its
            error is quoted.
        """
        compiled = self._compile(chat)
        try:
            written = self._render(compiled, chat, turns, call)
        except Exception as error:  # a template's expressions raise whatever Python's do
            # Some templates, such as DeepSeek's, concatenate arguments as text, as OpenAI's API sends them.
            if not (isinstance(error, TypeError) and any("tool_calls" in turn for turn in turns)):
                raise self._error(chat, error) from error
            try:
                written = self._render(compiled, chat, _with_arguments_as_text(turns), call)
            except Exception as error:
                raise self._error(chat, error) from error
        require_text(written.text, f"{chat.where}: what the chat template of {self.source} writes")
        return written

    def unread(self, chat: TemplateVariables) -> set[str]:
        """Returns the keys of the chat's turns, its variables and `tools` that the template does not name.

        Raises:
          JloraError: the template cannot be compiled.
        """
        names, keys = self._compile(chat).names, {key for turn in chat.turns for key in turn} - {"role", "content"}
        if names.intersection(_READ):
            keys -= set(_REASONING)
        return (keys | set(chat.variables) | ({"tools"} if chat.tools else set())) - names

    def is_tagged(self, chat: TemplateVariables) -> bool:
        """Returns whether the template marks the assistant's turns itself (`{% generation %}`)."""
        return _GENERATION_TAG.search(self.tokenizer.get_chat_template(tools=chat.tools)) is not None

    def require_jinja(self) -> None:
        """Raises JloraError, with the line, if the template is not Jinja; each of them if the tokenizer has several."""
        stored: Any = self.tokenizer.chat_template
        for text in stored.values() if isinstance(stored, dict) else [stored]:
            self._compile_text(text)

    def _compile(self, chat: TemplateVariables) -> Compiled:
        try:
            return self._compile_text(self.tokenizer.get_chat_template(tools=chat.tools))
        except JloraError as error:
            raise JloraError(f"{chat.where}: {error}") from error
        except Exception as error:  # the tokenizer has several templates, and none for a chat
            raise self._error(chat, error) from error

    def _compile_text(self, text: str) -> Compiled:
        try:
            return compile_template(text)
        except Exception as error:  # Python's compiler raises others than Jinja's
            said = str(error)
            if isinstance(error, jinja2.TemplateSyntaxError):
                said = f"line {error.lineno}: {error.message}"
            raise JloraError(
                f"{self.source}: expected a chat template in Jinja, found a mistake in it: {said.rstrip('.')}. Correct"
                " the template there"
            ) from error

    def _render(self, compiled: Compiled, chat: TemplateVariables, turns: list[Turn], call: bool) -> Rendered:
        variables = {
            **self.tokenizer.special_tokens_map,
            **chat.variables,
            "messages": [_with_reasoning(turn) for turn in turns],
            "tools": chat.tools,
            "add_generation_prompt": call,
        }
        return render(compiled.template, {"documents": None} | variables, self.day)

    def _error(self, chat: TemplateVariables, error: Exception) -> JloraError:
        said = str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
        if isinstance(error, RecursionError):
            said = "its calls or values are nested too deeply. Give the tokenizer another chat template"
        return JloraError(f"{chat.where}: the chat template of {self.source} refuses this chat: {said}")


def _with_arguments_as_text(turns: list[Turn]) -> list[Turn]:
    def as_text(call: dict[str, Any]) -> dict[str, Any]:
        if "function" in call:
            return {**call, "function": as_text(call["function"])}
        return {**call, "arguments": json.dumps(call.get("arguments", {}), ensure_ascii=False)}

    return [
        {**turn, "tool_calls": [as_text(call) for call in turn["tool_calls"]]} if "tool_calls" in turn else turn
        for turn in turns
    ]


def _with_reasoning(turn: Turn) -> Turn:
    """Returns the turn with its reasoning under the names that templates read."""
    thoughts = next((turn[name] for name in _REASONING if turn.get(name) is not None), None)
    return turn if thoughts is None else {"thinking": thoughts, **turn, "reasoning_content": thoughts}
