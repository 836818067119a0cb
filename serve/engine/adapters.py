"""Which adapter is in which slot: by name, with the least recently used leaving when slots are full."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jlora.bank.bank import Bank
from jlora.bank.slots import drop, put
from jlora.errors import JloraError
from jlora.files.run_folder import find_adapter
from jlora.lora.entries import LowRank
from serve.engine.bank_capacity import require_configured
from serve.engine.requests import AdapterRefusedError, AdapterStatus, UnknownAdapterError

logger = logging.getLogger(__name__)

_MOST_READ = 4
"""How many adapters may be read, or have been read and wait for a slot: all of them would fill the memory."""


class StoredAdapter(NamedTuple):
    """What an adapter's folder holds.

    Attributes:
      entries: {path: entry}, arrays on the host.
      labels: the classes of a classifier, in the order of its outputs; () for a language model.
      problem_type: the classifier's, or None.
    """

    entries: Mapping[str, Any]
    labels: tuple[str, ...] = ()
    problem_type: str | None = None


Read = Callable[[Path], StoredAdapter]
"""read(folder): the adapter in a folder; raises JloraError if it is none for the base."""


@dataclasses.dataclass(eq=False)
class Record:
    """An adapter under its name; the adapter that replaces it gets a new record.

    Attributes:
      slot: where it is in the bank; None if it is not there.
      users: how many answers use it now; as long as there are some it keeps its slot.
      used: grows with each use: the record with the smallest number was least recently used.
      version: a new number each time its files are read, since they may have changed.
      reading: the adapter while it is read from its folder.
      labels, problem_type: as in StoredAdapter, once it has been read.
      is_known: false once it has been unloaded or replaced.
    """

    name: str
    folder: Path
    slot: int | None = None
    users: int = 0
    used: int = 0
    rank: int | None = None
    version: int = 0
    reading: Future | None = None
    labels: tuple[str, ...] = ()
    problem_type: str | None = None
    is_known: bool = True

    @property
    def place(self) -> int:
        """The slot of an adapter that is in use."""
        assert self.slot is not None
        return self.slot


class AdapterSlots:
    """The adapters of an engine and their bank. Methods are called from the engine's thread.

    Attributes:
      bank: holds the adapters that are loaded.
      counts: {"hits": requests whose adapter was in a slot when they came, "misses": those whose adapter was not,
        "evictions": adapters that left their slot to make room}.
    """

    def __init__(self, bank: Bank, read: Read, reader: Executor, folders: Mapping[str, Path]) -> None:
        self.bank = bank
        self.counts = dict.fromkeys(("hits", "misses", "evictions"), 0)
        self._read, self._reader = read, reader
        self._shapes = jax.eval_shape(lambda: bank)  # the bank's own arrays are donated with each write
        self._clock = itertools.count(1)
        self._records = {name: Record(name, folder) for name, folder in folders.items()}
        self._in_slot: dict[int, Record] = {}
        self._being_read: set[Record] = set()

    def record(self, name: str) -> Record:
        """Returns the newest record of an adapter; raises UnknownAdapterError if there is none of the name."""
        if name not in self._records:
            raise UnknownAdapterError(f"model {name!r}: no adapter of this name; GET /v1/models lists them")
        return self._records[name]

    def list(self) -> list[AdapterStatus]:
        """Returns all adapters, in the order of their names."""
        records = (self._records[name] for name in sorted(self._records))
        return [_status(record) for record in records]

    def numbers(self) -> dict[str, float]:
        """Returns how many slots there are and are used, and the counts."""
        return {"slots": self.bank.slots, "slots_used": len(self._in_slot), **self.counts}

    def require_place(self, stored: StoredAdapter) -> None:
        """Raises AdapterMismatchError if the bank has no place for an adapter; may be called from any thread."""
        require_configured(self._shapes, stored.entries)

    def warm_up(self) -> None:
        """Compiles what puts an adapter into a slot, and takes it out."""
        self.bank = drop(put(self.bank, 0, {}, donate=True), 0, donate=True)

    def begin_reading(self, record: Record) -> bool:
        """Begins to read the adapter's files unless it is in a slot; returns whether it is there or has been read.

        Where too many are being read it begins later: call it again.
        """
        if record.slot is not None:
            return True
        if record.reading is None:
            if len(self._being_read) >= _MOST_READ:
                return False
            record.reading = self._reader.submit(self._read, record.folder)
            self._being_read.add(record)
        return record.reading.done()

    def stop_reading(self, *, but: Collection[Record]) -> None:
        """Drops what has been read of adapters for which no request waits any more, all but these."""
        for record in self._being_read.difference(but):
            self._drop_reading(record)

    def acquire(self, record: Record) -> bool:
        """Begins one use of the adapter and returns true, if it is in a slot or can be put into one now.

        Otherwise it begins or continues to load the adapter, and returns false.

        Raises:
          AdapterRefusedError: its files cannot be served.
        """
        if record.slot is None and not self._load(record):
            return False
        record.users += 1
        record.used = next(self._clock)
        return True

    def count_use(self, record: Record) -> None:
        """Counts a request for the adapter as a hit or a miss."""
        self.counts["misses" if record.slot is None else "hits"] += 1

    def release(self, record: Record) -> None:
        """Ends one use of the adapter; one that is no longer known leaves its slot after the last."""
        record.users -= 1
        if not record.users and not record.is_known:
            self._leave(record)

    def replace(self, name: str, folder: Path, stored: StoredAdapter) -> AdapterStatus:
        """Makes an adapter known that has been read; one of the same name goes on only in answers that run."""
        if name in self._records:
            self.forget(name)
        record = self._records[name] = Record(name, folder)
        slot = self._free_slot()
        if slot is not None:
            self._put(record, slot, stored)
        return _status(record)

    def forget(self, name: str) -> Record:
        """Removes an adapter, for later requests; raises UnknownAdapterError if there is none of the name."""
        record = self.record(name)
        del self._records[name]
        record.is_known = False
        if not record.users:
            self._leave(record)
        return record

    def _load(self, record: Record) -> bool:
        """Goes on with loading; returns whether the adapter is in a slot now."""
        if not self.begin_reading(record):
            return False
        assert record.reading is not None
        try:
            stored = record.reading.result()
            self.require_place(stored)
        except Exception as error:  # whatever a file that has changed may raise, the engine goes on
            self._drop_reading(record)
            if not isinstance(error, JloraError):
                logger.exception("adapter %s: %s cannot be read", record.name, record.folder)
            raise AdapterRefusedError(f"adapter {record.name}: {error}") from error
        slot = self._free_slot()
        if slot is None:
            return False
        self._drop_reading(record)
        self._put(record, slot, stored)
        return True

    def _drop_reading(self, record: Record) -> None:
        if record.reading is not None:
            record.reading.cancel()
        record.reading = None
        self._being_read.discard(record)

    def _put(self, record: Record, slot: int, stored: StoredAdapter) -> None:
        self.bank = put(self.bank, slot, stored.entries, donate=True)
        record.slot, record.rank = slot, _rank(stored.entries)
        record.labels, record.problem_type = stored.labels, stored.problem_type
        record.used = record.version = next(self._clock)
        self._in_slot[slot] = record

    def _free_slot(self) -> int | None:
        """Returns a slot that no answer uses, after whoever is in it has left it; None if all are in use."""
        for slot in range(self.bank.slots):
            if slot not in self._in_slot:
                return slot
        idle = [record for record in self._in_slot.values() if not record.users]
        if not idle:
            return None
        oldest = min(idle, key=lambda record: record.used)
        self._leave(oldest)
        self.counts["evictions"] += 1
        return self._free_slot()

    def _leave(self, record: Record) -> None:
        if record.slot is not None:
            self.bank = drop(self.bank, record.slot, donate=True)
            del self._in_slot[record.slot]
            record.slot = None


def _status(record: Record) -> AdapterStatus:
    return AdapterStatus(record.name, record.folder, record.slot is not None, record.rank, record.labels)


def _rank(entries: Mapping[str, Any]) -> int:
    ranks = [max(entry.ranks) for entry in entries.values() if isinstance(entry, LowRank)]
    return max(ranks, default=0)


def find_folders(named: Mapping[str, Path], roots: Sequence[Path]) -> dict[str, Path]:
    """Returns {name: folder} of the adapters named, and of each adapter or run folder in `roots`, by its own name.

    Raises:
      JloraError: two adapters of one name; a root that is not a folder.
    """
    found = dict(named)
    for root in roots:
        if not root.is_dir():
            raise JloraError(f"adapter_folders: {root}: expected a folder that holds adapter folders, found none")
        inside = {place.name: find_adapter(place) for place in sorted(root.iterdir()) if place.is_dir()}
        for name, folder in inside.items():
            if folder is None:
                continue
            if name in found and found[name].resolve() != folder.resolve():
                raise JloraError(f"{folder}: expected one adapter called {name!r}, found also {found[name]}")
            found[name] = folder
        if not any(inside.values()):
            logger.warning("adapter_folders: %s holds no adapter folder and no run folder yet", root)
    return found
