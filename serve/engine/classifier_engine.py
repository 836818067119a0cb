"""Classifies rows of tokens with an encoder and many adapters, whatever the number of each one's classes."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from jlora.bank.adapt_many import adapt_many
from jlora.errors import ContextLengthError, JloraError
from serve.engine.adapters import AdapterSlots, Read, Record
from serve.engine.engine_thread import EngineThread
from serve.engine.requests import AdapterRefusedError, BusyError, Classified, CompletionRequest, Emit

_SHORTEST = 32


@dataclasses.dataclass(eq=False)
class Task:
    """One row to classify; `result` becomes its probabilities. `types` are () if all are 0."""

    record: Record
    ids: tuple[int, ...]
    types: tuple[int, ...]
    result: Future
    holds_adapter: bool = False


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
    ) -> None:
        super().__init__(name, adapters, read)
        self.context_length = context
        self._base, self._rows, self._limit = base, rows, waiting
        self._logits = jax.jit(adapt_many(model.apply))
        self._tasks: deque[Task] = deque()
        self._counted = {"prompt_tokens": 0, "rows": 0}

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths to which rows are padded, ascending."""
        return tuple(sorted({min(_SHORTEST * 2**i, self.context_length) for i in range(16)}))

    def start(self) -> None:
        """Compiles the program of each length and starts the thread."""
        for length in self.lengths:
            self._compute([], length)
        super().start()

    def submit(self, request: CompletionRequest, emit: Emit) -> int:
        """Refuses a completion: an encoder writes no text."""
        raise AdapterRefusedError(f"{self.name}: an encoder, which classifies: POST /v1/classify")

    def cancel(self, number: int) -> None:
        """Does nothing: rows are classified too quickly to be cancelled."""

    def classify(
        self, adapter: str, rows: Sequence[Sequence[int]], types: Sequence[Sequence[int]] | None = None
    ) -> Classified:
        """Returns the adapter's classes, and their probabilities for each row of token ids.

        `types` are the rows' token types, if the tokenizer gives any. The probabilities add up to 1, except those of a
        multi-label adapter; a regression's one number is its score.

        Raises:
          UnknownAdapterError, ContextLengthError, BusyError: as for `Engine.submit`.
          AdapterRefusedError: its files cannot be served.
        """
        longest = max(map(len, rows), default=0)
        if longest > self.context_length:
            raise ContextLengthError(f"input: expected at most {self.context_length} tokens, found {longest}")

        if len(rows) > self._limit:
            raise JloraError(f"input: expected at most {self._limit} texts (`waiting`), found {len(rows)}")

        def begin() -> tuple[list[Task], Record]:
            if self.is_ending.is_set() or len(self._tasks) + len(rows) > self._limit:
                raise BusyError(f"{len(self._tasks)} rows are waiting, of at most {self._limit}; try again later")
            record = self._adapters.record(adapter)
            self._adapters.count_use(record)
            kinds = types or [()] * len(rows)
            tasks = [Task(record, tuple(ids), tuple(kind), Future()) for ids, kind in zip(rows, kinds, strict=True)]
            self._tasks.extend(tasks)
            return tasks, record

        tasks, record = self.call(begin)
        found = [task.result.result() for task in tasks]
        return Classified(record.labels, found)

    def round(self) -> None:
        """Classifies the rows that came first and are padded to one length."""
        ready = [task for task in list(self._tasks) if self._acquire(task)]
        if not ready:
            return
        length = self._length_of(ready[0])
        batch = [task for task in ready if self._length_of(task) == length][: self._rows]
        for task, logits in zip(batch, self._compute(batch, length), strict=False):
            self._tasks.remove(task)
            record, own = task.record, logits[: len(task.record.labels)]
            self._adapters.release(record)
            if np.isfinite(own).all():
                task.result.set_result(_probabilities(own, record.problem_type).tolist())
            else:
                message = "the logits are not finite: the adapter was not applied, or has overflowed"
                task.result.set_exception(AdapterRefusedError(f"adapter {task.record.name}: {message}"))

    def is_computing(self) -> bool:
        """Returns whether the adapter of a waiting row is in a slot."""
        return any(task.holds_adapter for task in self._tasks)

    def is_waiting(self) -> bool:
        """Returns whether a row waits for its adapter."""
        return bool(self._tasks)

    def numbers(self) -> dict[str, float]:
        """Returns how many rows wait, and how many rows and tokens were read."""
        return {"running": 0, "waiting": len(self._tasks), **self._counted}

    def cut_all(self, message: str) -> None:
        """Ends the rows that wait."""
        for task in self._tasks:
            task.result.set_exception(BusyError(message))
        self._tasks.clear()

    def _acquire(self, task: Task) -> bool:
        if not task.holds_adapter:
            try:
                task.holds_adapter = self._adapters.acquire(task.record)
            except AdapterRefusedError as error:
                self._tasks.remove(task)
                task.result.set_exception(error)
        return task.holds_adapter

    def _length_of(self, task: Task) -> int:
        return next(length for length in self.lengths if length >= len(task.ids))

    def _compute(self, tasks: Sequence[Task], length: int) -> np.ndarray:
        """Returns the logits of the tasks, padded with rows of the base to the number that is compiled."""
        ids, mask, types = (np.zeros((self._rows, length), np.int32) for _ in range(3))
        slot = np.full(self._rows, -1, np.int32)
        mask[:, 0] = 1
        for row, task in enumerate(tasks):
            ids[row, : len(task.ids)], mask[row, : len(task.ids)], slot[row] = task.ids, 1, task.record.place
            types[row, : len(task.types)] = task.types
            self._counted["prompt_tokens"] += len(task.ids)
        self._counted["rows"] += len(tasks)
        batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return np.asarray(self._logits(self._base, self._adapters.bank, slot, batch), np.float32)


def _probabilities(logits: np.ndarray, problem: str | None) -> np.ndarray:
    if problem == "regression":
        return logits
    if problem == "multi_label_classification":
        return 1 / (1 + np.exp(-logits))
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()
