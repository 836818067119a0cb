"""The answers to one request, as they come from the engine's thread."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Literal

from anyio.to_thread import run_sync

from jlora.generation.detokenize import StopMatcher, TextDecoder
from serve.engine.requests import CompletionRequest, Emit, End, Engine, Token
from serve.http.errors import HttpError
from serve.http.metrics import Metrics

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FinishReason = Literal["stop", "length"]


@dataclasses.dataclass(frozen=True)
class Piece:
    """What is new in one of the answers.

    Attributes:
      index: which answer.
      text: whole characters; "" where the tokens so far end inside a character or at what may be a stop string.
      tokens: those since the last piece that had any. Empty where the text is "", except in a last piece whose answer
        has reached max_tokens.
      finish: why the answer ended, in its last piece.
    """

    index: int
    text: str
    tokens: tuple[Token, ...] = ()
    finish: FinishReason | None = None


class _Answer:
    """One answer: what its tokens are decoded with, and how far it is."""

    def __init__(self, index: int, decoder: TextDecoder, stops: Sequence[str]) -> None:
        self.index, self.decoder, self.matcher = index, decoder, StopMatcher(stops)
        self.number: int | None = None
        self.is_ended = False
        self.waiting: list[Token] = []
        self.tokens = 0
        self.last_time = time.monotonic()

    def add(self, token: Token) -> Piece:
        self.tokens += 1
        self.waiting.append(token)
        text = self.matcher.push(self.decoder.push(token.id))
        self.is_ended = self.matcher.is_stopped
        return self._piece(text, "stop" if self.is_ended else None)

    def end(self, end: End) -> Piece:
        self.is_ended = True
        if end.reason == "error":
            raise HttpError(500, f"the answer failed: {end.message}", code="answer_failed")
        if end.reason == "cut":
            message = f"the answer was cut: {end.message or 'the server is ending'}"
            raise HttpError(503, message, code="answer_cut")
        return self._piece(self.matcher.finish(), end.reason)

    def _piece(self, text: str, finish: FinishReason | None) -> Piece:
        is_sent = bool(text) or finish == "length"
        tokens, self.waiting = (tuple(self.waiting), []) if is_sent else ((), self.waiting)
        return Piece(self.index, text, tokens, finish)


class Answers:
    """Asks the engine for all answers to a request, and yields their pieces as they come.

    Attributes:
      prompt_tokens: of all prompts together.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[CompletionRequest],
        stops: Sequence[str],
        metrics: Metrics,
    ) -> None:
        """`requests`: one for each answer; those of one prompt share its ids."""
        self._engine, self._metrics, self._requests = engine, metrics, requests
        self._answers = [
            _Answer(index, TextDecoder(tokenizer, request.ids), stops) for index, request in enumerate(requests)
        ]
        self._queue: asyncio.Queue[tuple[_Answer, Token | End]] = asyncio.Queue()
        self._first: Piece | None = None
        self._is_closed = False
        self.prompt_tokens = sum(len(ids) for ids in {id(request.ids): request.ids for request in requests}.values())

    @property
    def answer_tokens(self) -> int:
        """Tokens that the engine has made, those of a stop string included."""
        return sum(answer.tokens for answer in self._answers)

    async def open(self) -> None:
        """Submits all requests, and waits for the first piece: what fails at once is an HTTP error, not a stream's.

        Raises:
          JloraError: as `Engine.submit`; HttpError where the first answer fails.
        """
        try:
            emits = map(self._emit_to, self._answers)
            numbers = await run_sync(self._engine.submit, list(zip(self._requests, emits, strict=True)))
            for answer, number in zip(self._answers, numbers, strict=True):
                answer.number = number
            self._first = await self._next()
        except BaseException:  # a cancelled wait, too: its client has left
            self.close()
            raise

    def close(self) -> None:
        """Cancels the answers that are still running. It must be called after `open`."""
        for answer in self._answers:
            if answer.number is not None and not answer.is_ended:
                self._engine.cancel(answer.number)
                answer.is_ended = True
        if not self._is_closed and self.answer_tokens:
            self._metrics.count_tokens(self.prompt_tokens, self.answer_tokens)
        self._is_closed = True

    async def __aiter__(self) -> AsyncIterator[Piece]:
        piece = self._first
        while piece is not None:
            yield piece
            piece = await self._next()

    async def _next(self) -> Piece | None:
        """Returns the next piece, or None after the last answer's end."""
        while not all(answer.is_ended for answer in self._answers):
            answer, item = await self._queue.get()
            if answer.is_ended:  # the engine had more tokens on the way when a stop string ended it
                continue
            if isinstance(item, End):
                return answer.end(item)
            self._measure(answer)
            piece = answer.add(item)
            if answer.is_ended and answer.number is not None:
                self._engine.cancel(answer.number)
            return piece
        return None

    def _emit_to(self, answer: _Answer) -> Emit:
        loop = asyncio.get_running_loop()

        def emit(item: Token | End) -> None:
            if not loop.is_closed():  # the server has ended
                loop.call_soon_threadsafe(self._queue.put_nowait, (answer, item))

        return emit

    def _measure(self, answer: _Answer) -> None:
        now = time.monotonic()
        kind = self._metrics.between_tokens if answer.tokens else self._metrics.first_token
        kind.observe(now - answer.last_time)
        answer.last_time = now
