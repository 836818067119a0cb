"""Classifies rows of tokens with an encoder and many adapters, whatever the number of each one's classes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jlora.bank.adapt_many import adapt_many
from jlora.errors import ContextLengthError, JloraError
from serve.engine.adapters import AdapterSlots, Read, Record
from serve.engine.engine_thread import EngineThread
from serve.engine.fair_queue import Row, RowsRequest, Turns
from serve.engine.requests import AdapterRefusedError, BusyError, Classified, EngineStoppedError

_SHORTEST = 32


class ClassifierEngine(EngineThread):
    """Answers with the probabilities of an adapter's classes; rows of different adapters share a batch.

    All heads are padded to one number of classes, and what is beyond an adapter's own is left out of the answer.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        base: Any,
        adapters: AdapterSlots,
        read: Read,
        *,
        rows: int,
        context: int,
        waiting: int = 256,
        mesh: Mesh | None = None,
    ) -> None:
        super().__init__(name, adapters, read, mesh)
        self.context_length = context
        self._base, self._rows, self._limit = base, rows, waiting
        self._logits = jax.jit(adapt_many(model.apply))
        self._turns = Turns()
        self._counted = {"prompt_tokens": 0, "rows": 0}

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths to which rows are padded, ascending."""
        return tuple(sorted({min(_SHORTEST * 2**i, self.context_length) for i in range(16)}))

    def warm_up(self) -> None:
        """Compiles the program of each length."""
        for length in self.lengths:
            self._compute([], length)

    def classify(
        self, adapter: str, rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None
    ) -> Future[Classified]:
        """Takes rows of token ids, as `Classifying.classify` describes.

        The probabilities add up to 1, except those of a multi-label adapter; a regression's one number is its score.
        """
        longest = max(map(len, rows), default=0)
        if longest > self.context_length:
            raise ContextLengthError(f"input: expected at most {self.context_length} tokens, found {longest}")
        if len(rows) > self._limit:
            raise JloraError(f"input: expected at most {self._limit} texts (`waiting`), found {len(rows)}")
        kinds = types or [()] * len(rows)

        def begin() -> Future[Classified]:
            record = self._adapters.record(adapter)
            if self.is_ending.is_set():
                raise EngineStoppedError("the server is ending")
            if len(rows) > self._turns.share(record, self._limit):
                raise BusyError(f"{len(self._turns)} rows are waiting, of at most {self._limit}; try again later")
            self._adapters.count_use(record)
            request = RowsRequest(record, len(rows))
            for place, (ids, kind) in enumerate(zip(rows, kinds, strict=True)):
                self._turns.add(Row(request, place, tuple(ids), tuple(kind), self._padded(len(ids))))
            return request.answer

        return self.call(begin)

    def round(self) -> None:
        """Classifies rows that are padded to one length: of the adapter whose turn it is, and of others."""
        self._turns.remove_answered()
        self._adapters.stop_reading(but=self._turns.records())
        first = self._next_adapter()
        if first is None:
            return
        rows = self._turns.choose(first, lambda record: record.slot is not None, self._rows)
        found = self._compute(rows, rows[0].length)
        self._turns.remove(rows)
        for row, logits in zip(rows, found, strict=False):
            record, own = row.record, logits[: len(row.record.labels)]
            if np.isfinite(own).all():
                row.request.add(row.place, _probabilities(own, record.problem_type).tolist())
            else:
                message = "the logits are not finite: the adapter was not applied, or has overflowed"
                row.request.fail(AdapterRefusedError(f"adapter {record.name}: {message}"))
        self._adapters.release(first)

    def is_computing(self) -> bool:
        """Returns whether the adapter of a waiting row is in a slot."""
        return any(record.slot is not None for record in self._turns.records())

    def is_waiting(self) -> bool:
        """Returns whether a row waits to be classified."""
        return bool(self._turns.records())

    def numbers(self) -> dict[str, float]:
        """Returns how many rows wait, and how many rows and tokens were read."""
        return {"running": 0, "waiting": len(self._turns), **self._counted}

    def cut_all(self, message: str) -> None:
        """Ends the rows that wait."""
        for row in self._turns:
            row.request.fail(EngineStoppedError(message))
        self._turns = Turns()

    def _next_adapter(self) -> Record | None:
        """Takes the adapter into use whose turn it is, of those that are in a slot or find one; None if none is."""
        for record in self._turns.records():
            try:
                if self._adapters.acquire(record):
                    return record
            except AdapterRefusedError as error:
                for row in self._turns:
                    if row.record is record:
                        row.request.fail(error)
                self._turns.remove_answered()
        return None

    def _padded(self, tokens: int) -> int:
        return next(length for length in self.lengths if length >= tokens)

    def _compute(self, rows: Sequence[Row], length: int) -> np.ndarray:
        """Returns the logits of the rows, padded with rows of the base to the number that is compiled."""
        ids, mask, types = (np.zeros((self._rows, length), np.int32) for _ in range(3))
        slot = np.full(self._rows, -1, np.int32)
        mask[:, 0] = 1
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)], mask[number, : len(row.ids)], slot[number] = row.ids, 1, row.record.place
            types[number, : len(row.types)] = row.types
            self._counted["prompt_tokens"] += len(row.ids)
        self._counted["rows"] += len(rows)
        batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return np.asarray(self._logits(self._base, self._adapters.bank, slot, batch), np.float32)


def _probabilities(logits: np.ndarray, problem: str | None) -> np.ndarray:
    if problem == "regression":
        return logits
    if problem == "multi_label_classification":
        return 1 / (1 + np.exp(-logits))
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()
