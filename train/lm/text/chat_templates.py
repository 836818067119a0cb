"""Renders chats with a chat template, and finds the spans of the turns that are learnt."""

from __future__ import annotations

import copy
import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jlora.errors import JloraError
from jlora.generation.chat_template import ChatTemplate
from jlora.generation.template_sandbox import Span
from jlora.pretrained.locate import local_path
from train.lm.text.conversations import Conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Chat(NamedTuple):
    """A chat as text.

    Attributes:
      text: what the template wrote.
      learnt: the spans to learn, (begin, end) in characters; None means all of it.
      prompt: the number of characters before the first answer that may be learnt, its generation prompt included.
    """

    text: str
    learnt: tuple[Span, ...] | None
    prompt: int


def with_template(tokenizer: PreTrainedTokenizerBase, file: str | None) -> PreTrainedTokenizerBase:
    """Returns the tokenizer, or a copy of it with the chat template in `file` (`data.chat_template`).

    The tokenizer itself is returned if `file` is None; it is never changed.

    Raises:
      JloraError: the file is missing, empty or not text.
    """
    if file is None:
        return tokenizer
    path = local_path(file) or Path(file)
    try:
        template = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JloraError(f"data.chat_template={file}: expected a Jinja file in UTF-8; found {error}") from error
    if not template.strip():
        raise JloraError(f"data.chat_template={file}: expected a Jinja file; found an empty one")
    copied = copy.deepcopy(tokenizer)
    copied.chat_template = template
    return copied


def chat_template(
    tokenizer: PreTrainedTokenizerBase, file: str | None = None, day: datetime.date | None = None
) -> ChatTemplate:
    """Returns the tokenizer's chat template.

    Args:
      file: where the template is from, for errors; None means the tokenizer's own place.
      day: what the template sees as today; None means today (UTC).

    Raises:
      JloraError: the tokenizer has no template, or it is not Jinja.
    """
    source = file or tokenizer.name_or_path or "the model"
    if not tokenizer.chat_template:
        raise JloraError(
            f"{source}: expected a tokenizer with a chat template, because the rows are chats; found none."
            " Give a Jinja file: data.chat_template=FILE"
        )
    template = ChatTemplate(tokenizer, day or datetime.datetime.now(datetime.UTC).date(), source)
    template.require_jinja()
    return template


def write_chat(chat: Conversation, template: ChatTemplate, only: bool) -> Chat:
    """Writes the chat with the template and finds what is learnt: answers (`only`) or all, without turns of weight 0.

    Spans are in characters, in the order of the text. Answers are the assistant's turns after the chat's `prompt`;
    turns of weight 0 are those in its `unlearnt`. `learnt` is None if all is learnt. An answer's span begins after the
    generation prompt and ends with the turn's end token.

    Templates with `{% generation %}` mark the assistant's turns themselves. With others, the text of a turn is the
    difference between the chat up to it and the chat before it with the generation prompt.

    Raises:
      JloraError: the template fails on the chat, changes earlier turns when others follow, or leaves out the tool calls
        of a turn without other content.
    """
    _require_written_calls(chat, template)
    turns = chat.turns
    text, generated = template.write(chat, turns)
    answers = [place for place in range(chat.prompt, len(turns)) if turns[place]["role"] == "assistant"]
    called = template.write(chat, turns[: answers[0]], call=True).text if answers else text
    prompt = _common(text, called)
    places = [i for i in answers if i not in chat.unlearnt] if only else sorted(chat.unlearnt)
    if not only and not places:
        return Chat(text, None, prompt)
    if places and template.is_tagged(chat):
        spans = _select_spans(chat, places, text, generated, template)
    else:
        spans = tuple(_span(chat, place, text, template) for place in places)
    return Chat(text, spans if only else _others(spans, len(text)), prompt)


def _require_written_calls(chat: Conversation, template: ChatTemplate) -> None:
    """Raises JloraError for a turn of only tool calls, if the template leaves tool calls out."""
    if "tool_calls" not in template.unread(chat):
        return
    for number, turn in enumerate(chat.turns, 1):
        if "tool_calls" in turn and not turn.get("content", "").strip():
            raise JloraError(
                f"{chat.where}, turn {number}: expected a chat template that writes tool_calls, because the turn has no"
                f" other content; found that of {template.source}, which leaves them out: the model would learn to"
                " answer nothing. Give another template: data.chat_template=FILE"
            )


def _select_spans(
    chat: Conversation, places: list[int], text: str, generated: tuple[Span, ...], template: ChatTemplate
) -> tuple[Span, ...]:
    """Returns the spans of the turns at `places`, from the template's marks of all the assistant's turns."""
    spoken = [place for place, turn in enumerate(chat.turns) if turn["role"] == "assistant"]
    if places == spoken:
        return generated
    if len(generated) != len(spoken):
        raise JloraError(
            f"{chat.where}: expected {{% generation %}} around each of the assistant's {len(spoken)} turns, because not"
            f" all of them are learnt; found it {len(generated)} times in the chat template of {template.source}. Give"
            " another template: data.chat_template=FILE"
        )
    marked = dict(zip(spoken, generated, strict=True))
    return tuple(marked.get(place) or _span(chat, place, text, template) for place in places)


def _span(chat: Conversation, place: int, text: str, template: ChatTemplate) -> Span:
    """Finds the span of one turn in the text of the chat; an assistant's turn starts after its generation prompt."""
    turn = chat.turns[place]
    is_answer = turn["role"] == "assistant"
    before = template.write(chat, chat.turns[:place], call=is_answer).text if place else ""
    until = text if place + 1 == len(chat.turns) else template.write(chat, chat.turns[: place + 1]).text
    written, start = until[len(before) :], len(before)
    if not text.startswith(written, start):
        # Some templates leave the empty thoughts out of all turns but the last.
        said = turn.get("content", "").strip()
        written = said + written.rpartition(said)[2] if said else written
    if not (text.startswith(before) and until.startswith(before) and text.startswith(written, start)):
        raise JloraError(
            f"{chat.where}, turn {place + 1}: expected a chat template that continues from its generation prompt and "
            "leaves earlier turns unchanged; found one that changes them. Give one with {% generation %} around "
            "the assistant's turns (data.chat_template), or learn the whole chats (data.completion_only_loss=false)"
        )
    return start, start + len(_up_to_the_end_token(written, template.tokenizer) if is_answer else written)


def _others(spans: tuple[Span, ...], length: int) -> tuple[Span, ...]:
    """Returns the spans of a text of this length that are outside the given ones, which are in order."""
    edges = [0, *(edge for span in spans for edge in span), length]
    return tuple((start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end)


def _up_to_the_end_token(written: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Strips white space after the turn's end token, because nothing after that token is ever generated."""
    stripped = written.rstrip()
    ends = tuple(str(token) for token in tokenizer.added_tokens_decoder.values())
    return stripped if stripped.endswith(ends) else written


def _common(text: str, other: str) -> int:
    """Returns the length of the common beginning."""
    if text.startswith(other):
        return len(other)
    return next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
