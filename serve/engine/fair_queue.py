"""Rows that wait to be classified: adapters take turns, so that none has to wait for all rows of another."""

from __future__ import annotations

import dataclasses
import itertools
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future

from serve.engine.adapters import Record
from serve.engine.requests import BusyError, Classified


@dataclasses.dataclass(eq=False)
class RowsRequest:
    """The rows of one request.

    Attributes:
      record: its adapter.
      answer: of all rows. Who asked may cancel it.
      found: {place of a row: its probabilities} so far.
      labels: the adapter's when it classified these.
    """

    record: Record
    count: int
    answer: Future[Classified] = dataclasses.field(default_factory=Future)
    found: dict[int, list[float]] = dataclasses.field(default_factory=dict)
    labels: tuple[str, ...] | None = None

    def add(self, place: int, probabilities: list[float]) -> None:
        """Takes the probabilities of a row; after the last one the request is answered."""
        if self.labels not in (None, self.record.labels):  # it left its slot, and its files have changed
            self.fail(BusyError(f"adapter {self.record.name}: its classes have changed meanwhile; try again"))
        self.labels, self.found[place] = self.record.labels, probabilities
        if len(self.found) == self.count and self._is_awaited():
            self.answer.set_result(Classified(self.labels, [self.found[place] for place in range(self.count)]))

    def fail(self, error: Exception) -> None:
        """Answers with an error, unless there is an answer."""
        if self._is_awaited():
            self.answer.set_exception(error)

    def _is_awaited(self) -> bool:
        """Returns whether there is no answer yet, and somebody waits for it; then it cannot be cancelled any more."""
        return not self.answer.done() and self.answer.set_running_or_notify_cancel()


@dataclasses.dataclass(eq=False)
class Row:
    """One row to classify, at its place in a request.

    Attributes:
      types: token types; () if all are 0.
      length: to which it is padded.
    """

    request: RowsRequest
    place: int
    ids: tuple[int, ...]
    types: tuple[int, ...]
    length: int

    @property
    def record(self) -> Record:
        """The adapter that classifies it."""
        return self.request.record


class Turns:
    """The rows that wait, by adapter; the first adapter is the one whose last turn was longest ago."""

    def __init__(self) -> None:
        self._queues: OrderedDict[Record, deque[Row]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[Row]:
        return itertools.chain.from_iterable(self._queues.values())

    def records(self) -> list[Record]:
        """Returns the adapters that have rows, in the order of their turns."""
        return list(self._queues)

    def add(self, row: Row) -> None:
        """Adds a row; an adapter that has no other one has its turn after those that have."""
        self._queues.setdefault(row.record, deque()).append(row)

    def share(self, record: Record, most: int) -> int:
        """Returns how many more rows an adapter may add.

        That is the room that is left of `most`, or if it is more, the adapter's fair share of `most` (divided by the
        adapters that have rows, this one included) without the rows that it has already.
        """
        own, others = len(self._queues.get(record, ())), len(self._queues.keys() - {record})
        return max(most - len(self), most // (others + 1) - own)

    def choose(self, first: Record, is_ready: Callable[[Record], bool], most: int) -> list[Row]:
        """Returns at most `most` rows that all have the padded length of the first row of the adapter `first`.

        It is the turn of `first`, which moves to the end of the order. Adapters that are ready have a row each before
        one has a second. The rows wait until they are removed.
        """
        length = self._queues[first][0].length
        self._queues.move_to_end(first)
        others = [record for record in self._queues if record is not first and is_ready(record)]
        alike = [[row for row in self._queues[record] if row.length == length] for record in (first, *others)]
        mixed = (row for group in itertools.zip_longest(*alike) for row in group if row is not None)
        return list(itertools.islice(mixed, most))

    def remove(self, rows: Sequence[Row]) -> None:
        """Removes rows that wait."""
        gone = set(rows)
        for record in {row.record for row in gone}:
            left = deque(row for row in self._queues[record] if row not in gone)
            if left:
                self._queues[record] = left
            else:
                del self._queues[record]

    def remove_answered(self) -> None:
        """Removes the rows of requests that have an answer, such as an error, or that nobody waits for."""
        self.remove([row for row in self if row.request.answer.done()])
