"""Engines without a model: their answers are told by the adapter and the prompt."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

from jlora.errors import ContextLengthError
from serve.engine.requests import (
    AdapterRefusedError,
    AdapterStatus,
    BusyError,
    Classified,
    CompletionRequest,
    Emit,
    End,
    EngineStoppedError,
    Token,
    UnknownAdapterError,
)
from tests.support.training.lm_data import byte_tokenizer

TOKENIZER = byte_tokenizer()
BASE = "tiny-base"


def answer_text(adapter: str | None, prompt: str) -> str:
    """What the fake engine says to a prompt, before its length is limited."""
    digest = hashlib.sha256(prompt.encode()).hexdigest()[:8]
    return f"I am {adapter or 'the base'} — you said {len(prompt)} characters ({digest}). That is all ☕"


class _Adapters:
    """Adapters by name, and what both engines do with them."""

    name = BASE

    def __init__(self, adapters: Sequence[str] = ("alice", "holmes"), context_length: int = 2000) -> None:
        self.context_length = context_length
        self.known = {name: self._status(name, Path("/adapters") / name) for name in adapters}
        self.is_stopped = False

    def adapters(self) -> Sequence[AdapterStatus]:
        return [self.known[name] for name in sorted(self.known)]

    def load(self, name: str, folder: Path) -> AdapterStatus:
        if not (folder / "adapter_config.json").is_file():
            raise AdapterRefusedError(f"{folder}: expected adapter_config.json, found none")
        self.known[name] = self._status(name, folder)
        return self.known[name]

    def unload(self, name: str) -> None:
        self._require(name)
        del self.known[name]

    def stop(self, seconds: float) -> None:
        self.is_stopped = True

    def _status(self, name: str, folder: Path) -> AdapterStatus:
        return AdapterStatus(name, folder, loaded=True, rank=4)

    def _require(self, name: str | None) -> None:
        if self.is_stopped:
            raise EngineStoppedError("the engine is ending")
        if name is not None and name not in self.known:
            raise UnknownAdapterError(f"no adapter has the name {name!r}")


class FakeEngine(_Adapters):
    """Answers one token each `delay` seconds, from a thread for each request.

    Attributes:
      submitted: all requests so far.
      cancelled: the numbers of those that were cancelled while they ran.
      fails: an End that answers get instead of their tokens; None lets them be.
      most: how many requests may run at once.
      text: what it says to every prompt, if it is given.
    """

    def __init__(
        self, *given: Sequence[str], delay: float = 0.0, most: int = 100, context_length: int = 2000, text: str = ""
    ) -> None:
        super().__init__(*given, context_length=context_length)
        self.delay, self.most, self.text = delay, most, text
        self.submitted: list[CompletionRequest] = []
        self.cancelled: list[int] = []
        self.fails: End | None = None
        self._running: dict[int, threading.Event] = {}

    def submit(self, requests: Sequence[tuple[CompletionRequest, Emit]]) -> list[int]:
        for request, _ in requests:
            self._require(request.adapter)
            if len(request.ids) + request.max_tokens > self.context_length:
                raise ContextLengthError(f"expected at most {self.context_length} tokens")
        if len(self._running) + len(requests) > self.most:
            raise BusyError(f"expected at most {self.most} requests at once")
        return [self._begin(*asked) for asked in requests]

    def _begin(self, request: CompletionRequest, emit: Emit) -> int:
        number = len(self.submitted)
        self.submitted.append(request)
        self._running[number] = threading.Event()
        threading.Thread(target=self._answer, args=(number, request, emit), daemon=True).start()
        return number

    def cancel(self, number: int) -> None:
        if number in self._running:
            self.cancelled.append(number)
            self._running[number].set()

    def counts(self) -> dict[str, float]:
        return {"running": len(self._running), "waiting": 0, "slots": len(self.known), "hits": 7, "evictions": 1}

    def running(self) -> int:
        return len(self._running)

    def stop(self, seconds: float) -> None:
        super().stop(seconds)
        end = time.monotonic() + seconds
        while self._running and time.monotonic() < end:
            time.sleep(0.01)
        for number in list(self._running):
            self.cancel(number)

    def _answer(self, number: int, request: CompletionRequest, emit: Emit) -> None:
        text = self.text or answer_text(request.adapter, TOKENIZER.decode(request.ids))
        if request.temperature > 0:
            text = f"{request.seed} {text}"
        ids = TOKENIZER(text)["input_ids"]
        end = self.fails or End("stop" if len(ids) <= request.max_tokens else "length")
        for token in ids[: request.max_tokens] if self.fails is None else ():
            if self._running[number].wait(self.delay):
                end = End("cut")
                break
            top = tuple((token + place, -0.5 - place) for place in range(request.top_logprobs))
            emit(Token(token, -0.5, top))
        del self._running[number]
        emit(end)


class FakeClassifier(_Adapters):
    """Classifies by the number of tokens: each adapter has labels of its own.

    Attributes:
      answers: to all requests so far.
      is_silent: whether it leaves requests without an answer.
    """

    labels = {"mood": ("bad", "good"), "topic": ("art", "law", "sport")}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__(tuple(self.labels), context_length=100)
        self.answers: list[Future[Classified]] = []
        self.is_silent = False

    def classify(
        self, adapter: str, rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None
    ) -> Future[Classified]:
        self._require(adapter)
        assert [len(row) for row in rows] == [len(row) for row in types or []]
        count = len(self.labels[adapter])
        best = [len(row) % count for row in rows]
        found = [[0.75 if place == one else 0.25 / (count - 1) for place in range(count)] for one in best]
        answer: Future[Classified] = Future()
        self.answers.append(answer)
        if not self.is_silent:
            answer.set_result(Classified(self.labels[adapter], found))
        return answer

    def counts(self) -> dict[str, float]:
        return {"running": 0}

    def _status(self, name: str, folder: Path) -> AdapterStatus:
        return AdapterStatus(name, folder, loaded=True, rank=4, labels=self.labels.get(name, ()))
