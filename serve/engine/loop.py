"""The engine's loop: requests come, prompts are read piece by piece, all rows get their next token, answers end."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from jlora.errors import ContextLengthError, JloraError
from serve.engine.adapters import AdapterSlots, Read, Record
from serve.engine.answer import Answer
from serve.engine.engine_thread import EngineThread
from serve.engine.prefixes import Prefixes
from serve.engine.requests import AdapterRefusedError, BusyError, CompletionRequest, Emit, End, EngineStoppedError
from serve.engine.row_pool import RowPool
from serve.engine.sampling import Drawn, token_of

_FAIR = 1.0
"""Seconds after which a request that waits for a slot is no longer passed by later ones."""


class LanguageEngine(EngineThread):
    """Answers requests for one language model and many adapters, in a thread of its own.

    Each round of the loop reads one piece of one prompt and then gives every row its next token: so a long prompt does
    not stop the answers that run, and requests for different adapters share each step.
    """

    def __init__(
        self,
        name: str,
        adapters: AdapterSlots,
        read: Read,
        *,
        pool: RowPool,
        context: int,
        waiting: int = 256,
        prefixes: int = 8,
        mesh: Mesh | None = None,
    ) -> None:
        super().__init__(name, adapters, read, mesh)
        self.context_length = context
        self._pool = pool
        self._prefixes = Prefixes(prefixes)
        self._limit = waiting
        self._numbers = itertools.count(1)
        self._waiting: deque[Answer] = deque()
        self._reading: deque[Answer] = deque()
        self._rows: dict[int, Answer] = {}
        self._tokens = {"prompt_tokens": 0, "answer_tokens": 0, "prefix_tokens": 0}

    # Called from any thread.

    def submit(self, requests: Sequence[tuple[CompletionRequest, Emit]]) -> list[int]:
        """Takes all requests, or none, as `Engine.submit` describes."""
        for request, _ in requests:
            self._require_room(request)
        if len(requests) > self._limit:
            raise JloraError(f"expected at most {self._limit} answers at once (`waiting`), found {len(requests)}")

        def begin() -> list[int]:
            if self.is_ending.is_set():
                raise EngineStoppedError("the server is ending")
            if len(self._waiting) + len(requests) > self._limit:
                raise BusyError(f"{len(self._waiting)} requests are waiting, of at most {self._limit}; try again later")
            answers = [Answer(next(self._numbers), *asked, self._record(asked[0].adapter)) for asked in requests]
            self._waiting.extend(answers)
            return [answer.number for answer in answers]

        return self.call(begin)

    def cancel(self, number: int) -> None:
        """Ends an answer early; one that has ended is left alone."""

        def mark() -> None:
            for answer in [*self._waiting, *self._reading, *self._rows.values()]:
                if answer.number == number:
                    answer.is_cut = True

        self.post(mark)

    def unload(self, name: str) -> None:
        """Forgets an adapter, and the prompts that it has read; answers that use it are finished."""
        self.call(lambda: self._prefixes.forget(self._adapters.forget(name).version))

    def _require_room(self, request: CompletionRequest) -> None:
        if len(request.ids) + request.max_tokens > self.context_length:
            raise ContextLengthError(
                f"prompt: expected at most {self.context_length} tokens together with max_tokens ="
                f" {request.max_tokens}, found {len(request.ids)}; shorten the prompt, or lower max_tokens"
            )

    # Called in the engine's thread.

    def _record(self, adapter: str | None) -> Record | None:
        """Returns the record of a request's adapter, and counts the request."""
        if adapter is None:
            return None
        record = self._adapters.record(adapter)
        self._adapters.count_use(record)
        return record

    def warm_up(self) -> None:
        """Compiles every program that a request may need."""
        self._pool.warm_up(self._adapters.bank)

    def round(self) -> None:
        """Reads a piece of one prompt, and gives every row its next token."""
        self._admit()
        self._read_piece()
        self._make_tokens()

    def is_computing(self) -> bool:
        """Returns whether a prompt is read, or an answer written."""
        return bool(self._reading or self._rows)

    def is_waiting(self) -> bool:
        """Returns whether requests wait for a row, or for their adapter."""
        return bool(self._waiting)

    def numbers(self) -> dict[str, float]:
        """Returns how many answers run and wait, and how many tokens were read and made."""
        return {"running": len(self._rows) + len(self._reading), "waiting": len(self._waiting), **self._tokens}

    def cut_all(self, message: str) -> None:
        """Ends all answers."""
        reason: Any = "cut" if self._failure is None else "error"
        answers = [*self._waiting, *self._reading, *self._rows.values()]
        self._waiting.clear()
        self._reading.clear()
        for answer in answers:  # first the ends, which clients wait for: after a failure what follows may fail too
            answer.emit(End(reason, message))
        for answer in answers:
            self._free(answer)

    def _admit(self) -> None:
        """Begins the requests for which there is a row, and whose adapter is in a slot."""
        for answer in [answer for answer in self._waiting if answer.is_cut]:
            self._waiting.remove(answer)
            answer.emit(End("cut"))
        self._adapters.stop_reading(but=[answer.record for answer in self._waiting if answer.record is not None])
        slots_are_kept = False
        for answer in list(self._waiting):
            if len(self._reading) + len(self._rows) == self._pool.sizes.most_rows:
                return
            if slots_are_kept and answer.record is not None:
                self._adapters.begin_reading(answer.record)
            elif self._acquire(answer):
                self._waiting.remove(answer)
                self._reading.append(answer)
            elif time.monotonic() - answer.since > _FAIR and answer in self._waiting:
                # Later requests for other adapters would keep all slots in use for ever.
                slots_are_kept = answer.record is not None and self._adapters.begin_reading(answer.record)

    def _acquire(self, answer: Answer) -> bool:
        if answer.record is None:
            return True
        try:
            answer.holds_adapter = self._adapters.acquire(answer.record)
        except AdapterRefusedError as error:
            self._waiting.remove(answer)
            answer.emit(End("error", str(error)))
            return False
        return answer.holds_adapter

    def _read_piece(self) -> None:
        """Reads the next piece of the prompt that came first; after its last piece the answer has its first token."""
        while self._reading and self._reading[0].is_cut:
            self._end(self._reading.popleft(), End("cut"))
        if not self._reading:
            return
        answer = self._reading[0]
        request, ids = answer.request, answer.request.ids
        if answer.memory is None:
            self._begin(answer)
        end = len(ids) if answer.read >= request.adapter_from else min(len(ids), request.adapter_from)
        slot = answer.slot_at(answer.read)
        piece, drawn = self._pool.read(
            self._adapters.bank, answer.memory, ids[answer.read : end], answer.read, slot, request
        )
        answer.memory, answer.read = piece.memory, answer.read + piece.read
        self._tokens["prompt_tokens"] += piece.read
        if not drawn.is_finite[0]:  # what it has read must reach neither the rows nor another prompt
            self._end(self._reading.popleft(), _not_finite())
        elif answer.read < len(ids):
            self._reading.rotate(-1)
        else:
            self._prefixes.keep(answer.reader, ids, answer.memory)
            self._take_row(answer)
            self._reading.popleft()
            self._take_token(answer, drawn, 0)

    def _begin(self, answer: Answer) -> None:
        """Gives the answer a memory, with what is known of its prompt already."""
        request = answer.request
        known, memory = self._prefixes.find(answer.reader, request.ids)
        known = min(known, len(request.ids) - 1)  # the last token is read again, for its logits
        answer.memory = self._pool.new_memory(len(request.ids), request.max_tokens, memory)
        answer.read = known if memory is not None else 0
        self._tokens["prefix_tokens"] += answer.read

    def _take_row(self, answer: Answer) -> None:
        answer.row = next(row for row in range(self._pool.sizes.most_rows) if row not in self._rows)
        self._pool.place(answer.memory, answer.row)
        self._rows[answer.row] = answer
        answer.places, answer.memory = answer.memory.places, None

    def _make_tokens(self) -> None:
        """Gives each row its next token."""
        for answer in list(self._rows.values()):
            if answer.is_cut:
                self._end(answer, End("cut"))
        if not self._rows:
            return
        moved = self._pool.shrink({row: answer.places for row, answer in self._rows.items()})
        self._rows = {moved[row]: answer for row, answer in self._rows.items()}
        for row, answer in self._rows.items():
            answer.row = row
        drawn = self._pool.step(self._adapters.bank, self._rows)
        for row, answer in list(self._rows.items()):
            self._take_token(answer, drawn, row)

    def _take_token(self, answer: Answer, drawn: Drawn, row: int) -> None:
        """Hands the new token of an answer on, and ends the answer if it is the last."""
        request, token = answer.request, int(drawn.token[row])
        if not drawn.is_finite[row]:
            self._pool.clear(row)
            self._end(answer, _not_finite())
            return
        if token in request.stop_ids:
            self._end(answer, End("stop"))
            return
        answer.last, answer.drawn = token, answer.drawn + 1
        self._tokens["answer_tokens"] += 1
        answer.emit(token_of(drawn, row, request.top_logprobs))
        if answer.drawn == request.max_tokens:
            self._end(answer, End("length"))

    def _end(self, answer: Answer, end: End) -> None:
        self._free(answer)
        answer.emit(end)

    def _free(self, answer: Answer) -> None:
        """Gives back the answer's row, memory and adapter."""
        if answer.row is not None:
            del self._rows[answer.row]
            answer.row = None
        answer.memory = None
        if answer.record is not None and answer.holds_adapter:
            self._adapters.release(answer.record)
            answer.holds_adapter = False


def _not_finite() -> End:
    return End("error", "the logits are not finite: the adapter was not applied, or has overflowed")
