"""Adapters come into slots when they are asked for; the least recently used one leaves."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest

from jlora.errors import FileError, JloraError
from serve.engine.adapters import AdapterSlots, StoredAdapter, find_folders
from serve.engine.requests import AdapterRefusedError, UnknownAdapterError
from tests.support.bank_cases import make_adapters, make_case, make_empty_bank

CASE = make_case("plain")
ENTRIES = make_adapters(CASE)


class AtOnce:
    """An executor that runs what it is given at once."""

    def submit(self, fn, *args):
        future = Future()
        try:
            future.set_result(fn(*args))
        except Exception as error:
            future.set_exception(error)
        return future


def _slots(count=3, names="abcdef", read=lambda folder: StoredAdapter(ENTRIES[0]), executor=None):
    bank = make_empty_bank(CASE, slots=count)
    return AdapterSlots(bank, read, executor or AtOnce(), {name: Path(name) for name in names})


def _use(slots, name):
    record = slots.record(name)
    slots.count_use(record)
    assert slots.acquire(record)
    return record


def _loaded(slots):
    return "".join(status.name for status in slots.list() if status.loaded)


def test_the_least_recently_used_leaves():
    slots = _slots()
    for name in "abcab":
        slots.release(_use(slots, name))
    slots.release(_use(slots, "d"))
    assert _loaded(slots) == "abd"
    slots.release(_use(slots, "c"))
    assert _loaded(slots) == "bcd"
    assert slots.numbers() == {"slots": 3, "slots_used": 3, "hits": 2, "misses": 5, "evictions": 2}


def test_one_in_use_keeps_its_slot():
    slots = _slots(count=2)
    first, second = _use(slots, "a"), _use(slots, "b")
    waiting = slots.record("c")
    assert not slots.acquire(waiting)
    slots.release(second)
    assert slots.acquire(waiting)
    assert (first.slot, waiting.slot, second.slot) == (0, 1, None)


def test_a_replaced_adapter_leaves_after_its_last_use():
    slots = _slots()
    old = _use(slots, "a")
    slots.replace("a", Path("new"), StoredAdapter(ENTRIES[1]))
    new = _use(slots, "a")
    assert old.slot is not None
    assert new.slot not in (None, old.slot)
    slots.release(old)
    assert old.slot is None
    assert bool(slots.bank.filled[new.slot])
    assert int(slots.bank.filled.sum()) == 2  # it and the base


def test_a_name_that_was_forgotten_is_unknown():
    slots = _slots()
    slots.release(_use(slots, "a"))
    slots.forget("a")
    for use in (slots.record, slots.forget):
        with pytest.raises(UnknownAdapterError, match="'a'"):
            use("a")
    assert int(slots.bank.filled.sum()) == 1


def test_files_that_cannot_be_read_are_refused_each_time():
    def read(folder):
        raise FileError(f"{folder}: damaged")

    slots = _slots(read=read)
    for _ in range(2):
        with pytest.raises(AdapterRefusedError, match="adapter b: b: damaged"):
            slots.acquire(slots.record("b"))
    assert _loaded(slots) == ""


def test_whatever_reading_raises_is_a_refusal():
    def read(folder):
        raise PermissionError("not yours")

    with pytest.raises(AdapterRefusedError, match="adapter b: not yours"):
        _slots(read=read).acquire(_slots(read=read).record("b"))


def test_an_adapter_that_is_read_again_is_another_version():
    slots = _slots(count=1)
    first = _use(slots, "a").version
    slots.release(slots.record("a"))
    slots.release(_use(slots, "b"))
    assert _use(slots, "a").version > first


class Later:
    """An executor that runs nothing."""

    def submit(self, fn, *args):
        return Future()


def test_only_some_are_read_before_they_have_a_slot():
    slots = _slots(count=1)
    used = _use(slots, "a")
    waiting = [slots.record(name) for name in "bcdef"]
    assert [slots.begin_reading(record) for record in waiting] == [True] * 4 + [False]
    slots.stop_reading(but=waiting[1:])  # nobody waits for b any more
    assert slots.begin_reading(waiting[4])
    assert waiting[0].reading is None
    slots.release(used)
    assert [slots.acquire(record) for record in waiting[1:]] == [True, False, False, False]
    assert slots.begin_reading(waiting[0])  # c has a slot


def test_what_is_no_longer_wanted_is_not_read():
    slots = _slots(executor=Later())
    record = slots.record("a")
    assert not slots.begin_reading(record)
    reading = record.reading
    slots.stop_reading(but=[])
    assert reading.cancelled()


def test_each_folder_with_an_adapter_can_be_asked_for(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
    (tmp_path / "run" / "adapter").mkdir(parents=True)
    (tmp_path / "run" / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "other").mkdir()
    assert find_folders({"mine": Path("x")}, [tmp_path]) == {
        "run": tmp_path / "run" / "adapter",
        "mine": Path("x"),
        "one": tmp_path / "one",
        "two": tmp_path / "two",
    }
    with pytest.raises(JloraError, match="one adapter called 'one', found also x"):
        find_folders({"one": Path("x")}, [tmp_path])


def test_a_folder_without_adapters_is_warned_of(tmp_path, caplog):
    assert find_folders({}, [tmp_path]) == {}
    assert "holds no adapter folder and no run folder yet" in caplog.text


def test_a_folder_of_adapters_that_there_is_not_is_an_error(tmp_path):
    with pytest.raises(JloraError, match=r"adapter_folders: .*none: expected a folder"):
        find_folders({}, [tmp_path / "none"])
