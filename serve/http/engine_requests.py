"""What a body asks for, as the engine's requests."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from jlora.errors import ContextLengthError
from serve.engine.requests import CompletionRequest
from serve.http.errors import HttpError
from serve.http.limits import MOST_REPORTED
from serve.http.openai_schema import Sampled

_SEEDS = 2**31
_STEP = 0x9E3779B1
"""Odd, so that the answers of one request have different seeds: the golden ratio of 32 bits."""


def make_requests(
    body: Sampled,
    prompts: Sequence[Sequence[int]],
    *,
    adapter: str | None,
    max_tokens: int | None,
    top_logprobs: int,
    context_length: int,
    stop_ids: frozenset[int],
) -> list[CompletionRequest]:
    """Returns the engine's requests: n for the first prompt, n for the second, and so on.

    Args:
      prompts: token ids, at least one each.
      max_tokens: None takes what the context leaves.

    Raises:
      ContextLengthError: a prompt, with `max_tokens` of an answer, is longer than the context.
      HttpError: 400 where the answers would have too many likeliest tokens.
    """
    seed = secrets.randbelow(_SEEDS) if body.seed is None else body.seed
    requests: list[CompletionRequest] = []
    for prompt in prompts:
        ids = tuple(prompt)
        most = _fitting(len(ids), max_tokens, context_length)
        for _ in range(body.n or 1):
            requests.append(
                CompletionRequest(
                    adapter=adapter,
                    ids=ids,
                    max_tokens=most,
                    stop_ids=stop_ids,
                    temperature=1.0 if body.temperature is None else body.temperature,
                    top_p=1.0 if body.top_p is None else body.top_p,
                    seed=(seed + len(requests) * _STEP) % _SEEDS,
                    top_logprobs=top_logprobs,
                )
            )
    _require_few(sum(request.max_tokens for request in requests), top_logprobs)
    return requests


def _require_few(tokens: int, top_logprobs: int) -> None:
    if tokens * top_logprobs > MOST_REPORTED:
        raise HttpError(
            400,
            f"expected at most {MOST_REPORTED:,} likeliest tokens in all answers together, found {tokens:,} tokens with"
            f" {top_logprobs} of them each; lower top_logprobs (logprobs), n or max_tokens",
        )


def _fitting(prompt: int, max_tokens: int | None, context: int) -> int:
    asked = 1 if max_tokens is None else max_tokens
    if prompt + asked > context:
        raise ContextLengthError(
            f"expected at most {context} tokens, found {prompt} of the prompt and {str(asked)[:20]} of the answer;"
            " shorten the prompt or max_tokens"
        )
    return context - prompt if max_tokens is None else max_tokens
