"""Runs the answers of a request and writes them as the route's objects, in one piece or as a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from anyio.to_thread import run_sync
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from jlora.errors import JloraError
from serve.http.answers import Answers, FinishReason, Piece
from serve.http.engine_requests import make_requests
from serve.http.errors import GONE, error_body, to_http_error
from serve.http.event_stream import EventStream, while_connected
from serve.http.openai_schema import Sampled
from serve.http.which_model import adapter_of, generating_engine


class AnswerWriter(Protocol):
    """How a route writes its answers."""

    def chunks(self, piece: Piece) -> Sequence[dict[str, Any]]:
        """Returns the stream's objects for a piece."""

    def whole(self, choices: Sequence[tuple[Sequence[Piece], FinishReason]]) -> dict[str, Any]:
        """Returns the response's object for all pieces of each answer."""

    def frame(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """Returns an object of a stream with these choices."""


async def respond(
    request: HttpRequest,
    body: Sampled,
    prompts: Sequence[Sequence[int]],
    writer: AnswerWriter,
    *,
    max_tokens: int | None,
    top_logprobs: int | None,
) -> Response:
    """Returns the response to the prompts, token ids; the answers end when the client leaves.

    Args:
      max_tokens: of each answer; None takes what the context leaves.
      top_logprobs: how many of the likeliest tokens are reported with each token.

    Raises:
      JloraError: the engine refuses the request, or an answer fails before anything was sent.
    """
    engine, state = generating_engine(request), request.app.state
    requests = make_requests(
        body,
        prompts,
        adapter=adapter_of(body.model, engine.name),
        max_tokens=max_tokens,
        top_logprobs=top_logprobs or 0,
        context_length=engine.context_length,
        stop_ids=state.settings.stop_ids,
    )
    answers = Answers(engine, state.prompts.tokenizer, requests, body.stop or (), state.metrics)
    return await _send(request, body, answers, writer)


async def _send(request: HttpRequest, body: Sampled, answers: Answers, writer: AnswerWriter) -> Response:
    async def open_answers() -> bool:
        await answers.open()
        return True

    if not await while_connected(request.receive, open_answers):
        return Response(status_code=GONE)
    request.scope["jlora.model"] = body.model  # the engine knows it, so the metrics may
    if body.stream:
        return EventStream(_events(body, answers, writer), answers.close)
    try:
        choices = await while_connected(request.receive, lambda: _collect(answers))
    finally:
        answers.close()
    if choices is None:
        return Response(status_code=GONE)
    # In a thread, since answers with their likeliest tokens may be many megabytes.
    return await run_sync(lambda: JSONResponse(writer.whole(choices) | {"usage": _usage(answers)}))


async def _collect(answers: Answers) -> list[tuple[list[Piece], FinishReason]]:
    pieces: dict[int, list[Piece]] = {}
    async for piece in answers:
        pieces.setdefault(piece.index, []).append(piece)
    return [(pieces[index], pieces[index][-1].finish or "stop") for index in sorted(pieces)]


async def _events(body: Sampled, answers: Answers, writer: AnswerWriter) -> AsyncIterator[dict[str, Any] | str]:
    usage = {"usage": None} if body.include_usage else {}
    try:
        async for piece in answers:
            for chunk in writer.chunks(piece):
                yield chunk | usage
    except JloraError as error:
        yield error_body(to_http_error(error))
        return  # without [DONE]: the answer is not whole
    if body.include_usage:
        yield writer.frame([], usage=_usage(answers))
    yield "[DONE]"


def _usage(answers: Answers) -> dict[str, int]:
    prompt, answer = answers.prompt_tokens, answers.answer_tokens
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
