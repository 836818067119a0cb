"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from serve.engine.requests import Token
from serve.http.answers import FinishReason, Piece
from serve.http.json_body import read_body
from serve.http.openai_schema import ChatBody
from serve.http.respond import respond
from serve.http.token_text import finite_logprob, token_bytes, token_text
from serve.http.which_model import generating_engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


async def create_chat_completion(request: HttpRequest) -> Response:
    """Answers a chat."""
    generating_engine(request)
    body = await read_body(request, ChatBody)
    prompts = request.app.state.prompts
    ids = await prompts.from_chat(body.messages)
    writer = _ChatWriter(body, prompts.tokenizer)
    most = body.max_completion_tokens or body.max_tokens
    return await respond(request, body, [ids], writer, max_tokens=most, top_logprobs=body.top_logprobs)


class _ChatWriter:
    def __init__(self, body: ChatBody, tokenizer: PreTrainedTokenizerBase) -> None:
        self._body, self._tokenizer = body, tokenizer
        self._begun: set[int] = set()
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}

    def chunks(self, piece: Piece) -> Sequence[dict[str, Any]]:
        deltas = []
        if piece.index not in self._begun:
            self._begun.add(piece.index)
            deltas.append(self._choice(piece.index, {"role": "assistant", "content": ""}))
        if piece.text or piece.tokens:
            deltas.append(self._choice(piece.index, {"content": piece.text}, piece.tokens))
        if piece.finish:
            deltas.append(self._choice(piece.index, {}, finish=piece.finish))
        return [self.frame([delta]) for delta in deltas]

    def frame(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return self._head | {"object": "chat.completion.chunk", "choices": choices} | more

    def whole(self, choices: Sequence[tuple[Sequence[Piece], FinishReason]]) -> dict[str, Any]:
        written = [
            {
                "index": index,
                "message": {"role": "assistant", "content": "".join(piece.text for piece in pieces), "refusal": None},
                "logprobs": self._logprobs([token for piece in pieces for token in piece.tokens]),
                "finish_reason": finish,
            }
            for index, (pieces, finish) in enumerate(choices)
        ]
        return self._head | {"object": "chat.completion", "choices": written}

    def _choice(
        self, index: int, delta: dict[str, str], tokens: Sequence[Token] = (), finish: FinishReason | None = None
    ) -> dict[str, Any]:
        logprobs = self._logprobs(tokens) if tokens else None
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        most = self._body.top_logprobs or 0
        content = [
            self._logprob(token.id, token.logprob) | {"top_logprobs": [self._logprob(*top) for top in token.top[:most]]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _logprob(self, token: int, logprob: float) -> dict[str, Any]:
        text = token_text(self._tokenizer, token)
        return {"token": text, "logprob": finite_logprob(logprob), "bytes": token_bytes(text)}
