"""What a program asks of the engine, and what it is answered: plain values that know nothing of HTTP."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Literal, Protocol

from jlora.errors import JloraError


class UnknownAdapterError(JloraError):
    """No adapter has this name."""


class AdapterRefusedError(JloraError):
    """An adapter cannot be served: its folder, its base or its form is not the server's."""


class BusyError(JloraError):
    """The server has as much to do as it takes; the same request may succeed later."""


class EngineStoppedError(JloraError):
    """The engine takes no more requests: it is ending, or it has failed."""


@dataclasses.dataclass(frozen=True)
class CompletionRequest:
    """One completion.

    Attributes:
      adapter: an adapter's name; None is the base.
      ids: the prompt, at least one token.
      max_tokens: the most tokens of the answer.
      stop_ids: tokens that end the answer; they are not part of it.
      temperature: 0 takes the likeliest token (greedy).
      top_p: only the smallest set of likeliest tokens whose probabilities add up to at least this is drawn from; 1
        keeps all.
      seed: the same seed gives the same answer, whatever else is answered at the same time.
      top_logprobs: how many of the likeliest tokens are reported with each token, 0 to 20.
      adapter_from: the place in the prompt from which on the adapter applies; the tokens before it are read by the
        base. 0 is the whole prompt.
    """

    adapter: str | None
    ids: tuple[int, ...]
    max_tokens: int
    stop_ids: frozenset[int]
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    top_logprobs: int = 0
    adapter_from: int = 0


@dataclasses.dataclass(frozen=True)
class Token:
    """One token of an answer; `logprob` is its own, `top` holds (id, logprob) of the likeliest, best first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class End:
    """The end of an answer: at a stop token, at max_tokens, cut (cancelled, or the server ends), or an error."""

    reason: Literal["stop", "length", "cut", "error"]
    message: str = ""


@dataclasses.dataclass(frozen=True)
class Classified:
    """The answer to rows: the labels of one version of an adapter, and for each row a probability of each of them."""

    labels: tuple[str, ...]
    probabilities: list[list[float]]


Emit = Callable[[Token | End], None]
"""Called from the engine's thread for each token and once for the end; must not block."""


@dataclasses.dataclass(frozen=True)
class AdapterStatus:
    """An adapter that can be asked for.

    Attributes:
      loaded: whether it is in a slot now; the others are read from their folders when they are asked for.
      rank: its largest rank; None if its files have not been read yet.
      labels: the classes of a classifier, in the order of its outputs; () for a language model.
    """

    name: str
    folder: Path
    loaded: bool
    rank: int | None
    labels: tuple[str, ...] = ()


class Engine(Protocol):
    """What the HTTP layer needs of the engine; every method may be called from any thread."""

    @property
    def name(self) -> str:
        """The base's name, as it is asked for."""

    @property
    def context_length(self) -> int:
        """The most tokens of prompt and answer together."""

    def adapters(self) -> Sequence[AdapterStatus]:
        """Returns all adapters, in the order of their names."""

    def submit(self, requests: Sequence[tuple[CompletionRequest, Emit]]) -> list[int]:
        """Takes all requests, or none, and returns their numbers.

        Each one's `emit` is called until an End, which always comes.

        Raises:
          UnknownAdapterError: no adapter has the name.
          ContextLengthError: prompt and answer are longer than the context.
          JloraError: these requests alone are more than may wait.
          BusyError: others are waiting, and there is no room for these.
          EngineStoppedError: the engine is ending, or has failed.
        """

    def cancel(self, number: int) -> None:
        """Ends an answer early; its End has the reason "cut". One that has ended is left alone."""

    def load(self, name: str, folder: Path) -> AdapterStatus:
        """Makes an adapter known and loads it; one of the same name is replaced for later requests.

        Where answers use all slots it is known but not loaded: it is read again from its folder once a request asks for
        it.

        Raises:
          AdapterRefusedError: the folder holds no adapter for the base; nothing has changed.
        """

    def unload(self, name: str) -> None:
        """Forgets an adapter; answers that use it are finished.

        Raises:
          UnknownAdapterError: no adapter has the name.
        """

    def counts(self) -> dict[str, float]:
        """Returns {name: number} for the metrics: requests running and waiting, slots in use, hits, misses, evictions,
        tokens of prompts and of answers."""

    def stop(self, seconds: float) -> None:
        """Takes no more requests, waits at most `seconds` for answers to finish, and cuts the others."""


class Classifying(Protocol):
    """What an encoder's engine has instead of `submit`."""

    def classify(
        self, adapter: str, rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None
    ) -> Future[Classified]:
        """Takes rows of token ids; they become the adapter's labels, and their probabilities for each row.

        Args:
          types: the rows' token types, if the tokenizer gives any.

        Returns:
          A future, which may be cancelled. Its error is an AdapterRefusedError where the adapter cannot be served, and
          an EngineStoppedError where the engine ends before.

        Raises:
          UnknownAdapterError, ContextLengthError, JloraError, BusyError, EngineStoppedError: as for `Engine.submit`.
        """
