"""A request on its way through the engine."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from serve.engine.adapters import Record
from serve.engine.prefixes import FOREVER, Reader
from serve.engine.requests import CompletionRequest, Emit


@dataclasses.dataclass(eq=False)
class Answer:
    """A request on its way.

    Attributes:
      record: its adapter; None is the base.
      row: its row among those that get tokens; None while its prompt is read.
      read: how many tokens of the prompt have been read.
      memory: keys and values of what has been read, until it has a row.
      places: how many tokens its row must have room for.
      drawn: how many tokens it has; `last` is the newest.
      is_cut: whether it was cancelled. since: when it came, by time.monotonic.
    """

    number: int
    request: CompletionRequest
    emit: Emit
    record: Record | None
    holds_adapter: bool = False
    row: int | None = None
    read: int = 0
    memory: Any = None
    places: int = 0
    drawn: int = 0
    last: int = 0
    is_cut: bool = False
    since: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def reader(self) -> Reader:
        """Who reads the prompt."""
        return Reader(None, FOREVER) if self.record is None else Reader(self.record.version, self.request.adapter_from)

    def adapter_at(self, place: int) -> Record | None:
        """The adapter that reads the token at this place of the prompt, or of the answer; None is the base."""
        return None if place < self.request.adapter_from else self.record

    def slot_at(self, place: int) -> int:
        """Its slot in the bank; -1 is the base."""
        record = self.adapter_at(place)
        return -1 if record is None else record.place
