"""Chats written out by the tokenizer's chat template, and where in the text the assistant's turns stand."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2

from jlora.errors import JloraError
from train.lm.turns import Turn
from train.sources import local_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
"""From the first character to the one after the last."""
_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Chat(NamedTuple):
    """A chat as text.

    answers: the spans of the assistant's turns, each with the token that ends it; empty where they were not asked for.
    prompt: characters before the assistant's first turn, the words that call for it included.
    """

    text: str
    answers: tuple[Span, ...]
    prompt: int


def with_template(tokenizer: PreTrainedTokenizerBase, file: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer, or a copy of it that has the chat template in `file` (`data.chat_template`).

    Raises:
      JloraError: no such file, or one that is no text.
    """
    if file is None:
        return tokenizer
    path = local_path(file) or Path(file)
    try:
        template = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JloraError(f"data.chat_template={file}: expected a Jinja file; found {error}") from error
    copied = copy.deepcopy(tokenizer)
    copied.chat_template = template
    return copied


def require_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises JloraError where the tokenizer has no chat template."""
    if not tokenizer.chat_template:
        raise JloraError(
            f"{tokenizer.name_or_path or 'the model'}: expected a tokenizer with a chat template, as the rows are "
            "chats; found none. data.chat_template=FILE gives one (a Jinja file)"
        )


def write_chat(
    turns: list[Turn], tools: list[Any] | None, tokenizer: PreTrainedTokenizerBase, where: str, answers: bool
) -> Chat:
    """The chat as the template writes it; with `answers`, the spans of the assistant's turns too.

    Templates with `{% generation %}` mark these turns themselves. With others a turn is what the chat up to it has
    more than the chat before it that ends in the generation prompt.

    Raises:
      JloraError: the template refuses the chat, or writes earlier turns otherwise once others follow.
    """

    def write(count: int, add_generation_prompt: bool = False) -> str:
        return _write(turns[:count], tools, tokenizer, where, add_generation_prompt)

    text = write(len(turns))
    places = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
    if not places:
        return Chat(text, (), len(text))
    template = tokenizer.get_chat_template(tools=tools)
    tagged = _GENERATION_TAG.search(template) is not None
    called = places if answers and not tagged else places[:1]
    calls = {place: write(place, add_generation_prompt=True) for place in called}
    prompt = _common(text, calls[places[0]])
    if not answers:
        return Chat(text, (), prompt)
    if tagged:
        return Chat(text, _tagged(turns, tools, tokenizer, template), prompt)
    spans = []
    for place in places:
        until = text if place + 1 == len(turns) else write(place + 1)
        spans.append(_answer(text, calls[place], until, turns[place], f"{where}, turn {place + 1}", tokenizer))
    return Chat(text, tuple(spans), prompt)


def _write(
    turns: list[Turn], tools: list[Any] | None, tokenizer: PreTrainedTokenizerBase, where: str, call: bool
) -> str:
    try:
        return tokenizer.apply_chat_template(turns, tools=tools, tokenize=False, add_generation_prompt=call)
    except (jinja2.TemplateError, ValueError, TypeError) as error:
        raise JloraError(f"{where}: the chat template refuses this chat: {error}") from error


def _tagged(
    turns: list[Turn], tools: list[Any] | None, tokenizer: PreTrainedTokenizerBase, template: str
) -> tuple[Span, ...]:
    from transformers.utils.chat_template_utils import render_jinja_template

    _, spans = render_jinja_template(
        [turns],
        tools=tools,
        chat_template=template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    return tuple(spans[0])


def _answer(text: str, call: str, until: str, turn: Turn, place: str, tokenizer: PreTrainedTokenizerBase) -> Span:
    """The span of one turn: `call` is the chat before it with the generation prompt, `until` the chat up to it."""
    written, start = until[len(call) :], len(call)
    if not text.startswith(written, start):
        # Some templates leave the empty thoughts out of all turns but the last.
        said = turn.get("content", "").strip()
        written = said + written.rpartition(said)[2] if said else written
    if not (text.startswith(call) and until.startswith(call) and text.startswith(written, start)):
        raise JloraError(
            f"{place}: expected a chat template that goes on from its generation prompt and leaves earlier turns "
            "as they are; found one that writes them anew. Give one with {% generation %} around the assistant's "
            "turns (data.chat_template), or learn the whole chats (data.completion_only_loss=false)"
        )
    return start, start + len(_up_to_the_end_token(written, tokenizer))


def _up_to_the_end_token(written: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Without the white space after the turn's end token: what follows that is never generated."""
    stripped = written.rstrip()
    ends = tuple(str(token) for token in tokenizer.added_tokens_decoder.values())
    return stripped if stripped.endswith(ends) else written


def _common(text: str, other: str) -> int:
    """How many characters both begin with."""
    if text.startswith(other):
        return len(other)
    return next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
