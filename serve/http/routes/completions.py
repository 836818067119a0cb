"""POST /v1/completions."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from serve.engine.requests import Token
from serve.http.answers import FinishReason, Piece
from serve.http.json_body import read_body
from serve.http.openai_schema import CompletionBody
from serve.http.respond import respond
from serve.http.token_text import finite_logprob, token_text
from serve.http.which_model import generating_engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for this route only."""


async def create_completion(request: HttpRequest) -> Response:
    """Continues prompts."""
    generating_engine(request)
    body = await read_body(request, CompletionBody)
    prompts = request.app.state.prompts
    ids = [await prompts.from_prompt(prompt) for prompt in body.prompt]
    writer = _CompletionWriter(body, prompts.tokenizer)
    most = body.max_tokens or _DEFAULT_MAX_TOKENS
    return await respond(request, body, ids, writer, max_tokens=most, top_logprobs=body.logprobs)


class _CompletionWriter:
    def __init__(self, body: CompletionBody, tokenizer: PreTrainedTokenizerBase) -> None:
        self._body, self._tokenizer = body, tokenizer
        self._written: Counter[int] = Counter()
        self._head = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}

    def chunks(self, piece: Piece) -> Sequence[dict[str, Any]]:
        if not (piece.text or piece.tokens or piece.finish):
            return []
        return [self.frame([self._choice(piece.index, [piece], piece.finish)])]

    def frame(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return self._head | {"model": self._body.model, "choices": choices} | more

    def whole(self, choices: Sequence[tuple[Sequence[Piece], FinishReason]]) -> dict[str, Any]:
        return self.frame([self._choice(index, pieces, finish) for index, (pieces, finish) in enumerate(choices)])

    def _choice(self, index: int, pieces: Sequence[Piece], finish: FinishReason | None) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        return {"index": index, "text": text, "logprobs": self._logprobs(index, pieces), "finish_reason": finish}

    def _logprobs(self, index: int, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        if self._body.logprobs is None:
            return None
        tokens = [token for piece in pieces for token in piece.tokens]
        return {
            "tokens": [token_text(self._tokenizer, token.id) for token in tokens],
            "token_logprobs": [finite_logprob(token.logprob) for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens] if self._body.logprobs else None,
            "text_offset": [offset for piece in pieces for offset in self._offsets(index, piece)],
        }

    def _top(self, token: Token) -> dict[str, float]:
        """Returns {text: logprob}; of tokens with one text, such as parts of characters, that of the likeliest."""
        found: dict[str, float] = {}
        for top, logprob in token.top:
            found.setdefault(token_text(self._tokenizer, top), finite_logprob(logprob))
        return found

    def _offsets(self, index: int, piece: Piece) -> list[int]:
        """Returns where each token of a piece begins in the answer's text, in characters."""
        begin = at = self._written[index]
        self._written[index] += len(piece.text)
        offsets = []
        for token in piece.tokens:
            offsets.append(min(at, begin + len(piece.text)))
            text = token_text(self._tokenizer, token.id)
            at += 0 if "\ufffd" in text else len(text)  # the parts of a character begin where it does
        return offsets
