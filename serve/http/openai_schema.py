"""The bodies of requests, as OpenAI's clients send them.

A key that would change the answer and that this server does not honour is refused. Any other unknown key, such as
`user` or `metadata`, is ignored, as OpenAI's own servers add keys all the time.

Lists fail at their first wrong item: half a million would be as many errors, which take seconds and 800 MB.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from serve.http import limits

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
    "reasoning_effort": (),
    "verbosity": (),
    "suffix": ("",),
    "echo": (False,),
    "best_of": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "adapter_from": (0,),
}
"""Keys that change the answer, and the values with which they do not; null always is one of them."""

StopString = Annotated[str, Field(min_length=1, max_length=limits.LONGEST_STOP)]


class _Json(BaseModel):
    """Values with exactly the types of JSON: "1" is no number."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class RequestBody(_Json):
    """The keys that all bodies have."""

    model: str

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_honoured(cls, body: Any) -> Any:
        for key, neutral in _NEUTRAL.items() if isinstance(body, dict) else ():
            value = body.get(key)
            if value is not None and value not in neutral:
                raise KeyValueError(key, "this server does not honour it; leave it out")
        return body


class KeyValueError(ValueError):
    """A key of a body has a value that does not go with the other keys or with this server."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


class StreamOptions(BaseModel):
    """`include_usage`: whether the last chunk of a stream holds the counts of tokens."""

    include_usage: bool | None = False


class Sampled(RequestBody):
    """What the two kinds of completions have in common."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=limits.MOST_CHOICES)
    max_tokens: int | None = Field(None, ge=1)
    stop: list[StopString] | None = Field(None, max_length=limits.MOST_STOPS, fail_fast=True)
    seed: int | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _list_one_stop(cls, stop: Any) -> Any:
        return [stop] if isinstance(stop, str) else stop

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the counts of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


class TextPart(_Json):
    """A part of a message; images and sounds are refused."""

    type: Literal["text"]
    text: str


class Message(_Json):
    """One turn of a chat. The other keys of OpenAI's, such as `name`, are not given to the template."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]

    def to_turn(self) -> dict[str, str]:
        """Returns the turn as chat templates read it; to them OpenAI's "developer" is "system"."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatBody(Sampled):
    """The body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=limits.MOST_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = False
    top_logprobs: int | None = Field(None, ge=0, le=limits.MOST_TOP_LOGPROBS)

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        both = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(both) > 1:
            raise KeyValueError("max_completion_tokens", "expected the same as max_tokens, or one of the two alone")
        if self.top_logprobs is not None and not self.logprobs:
            raise KeyValueError("top_logprobs", 'expected "logprobs": true with it')
        return self


class CompletionBody(Sampled):
    """The body of POST /v1/completions; `prompt` is a list of prompts, each as text or as token ids."""

    prompt: list[str | list[int]]
    logprobs: int | None = Field(None, ge=0, le=limits.MOST_TOP_LOGPROBS)

    @field_validator("prompt", mode="plain")
    @classmethod
    def _list_prompts(cls, given: Any) -> list[str | list[int]]:
        prompts = given if isinstance(given, list) and not _is_ids(given) else [given]
        if not prompts or not all(isinstance(prompt, str) or _is_ids(prompt) for prompt in prompts):
            raise ValueError("expected text, a list of token ids, or a list of such prompts")
        return prompts

    @model_validator(mode="after")
    def _limit_answers(self) -> Self:
        answers = len(self.prompt) * (self.n or 1)
        if answers > limits.MOST_ANSWERS:
            raise KeyValueError("prompt", f"expected at most {limits.MOST_ANSWERS} prompts times n, found {answers}")
        return self


class ClassifyBody(RequestBody):
    """The body of POST /v1/classify; `input` is a list of rows of one or two texts."""

    input: list[tuple[str, ...]]

    @field_validator("input", mode="plain")
    @classmethod
    def _list_rows(cls, given: Any) -> list[tuple[str, ...]]:
        rows = given if isinstance(given, list) else [given]
        rows = [(row,) if isinstance(row, str) else row for row in rows]
        if not all(isinstance(row, tuple) or _is_pair(row) for row in rows):
            raise ValueError("expected text, a list of texts, or a list of pairs of texts")
        if not 1 <= len(rows) <= limits.MOST_TEXTS:
            raise ValueError(f"expected 1 to {limits.MOST_TEXTS} rows, found {len(rows)}")
        return [tuple(row) for row in rows]


class AdapterBody(BaseModel):
    """The body of POST /admin/adapters."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: str
    folder: str = Field(min_length=1, max_length=4096)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int and item >= 0 for item in value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(text, str) for text in value)
