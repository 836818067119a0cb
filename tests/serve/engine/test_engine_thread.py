"""Adapters come, go and are replaced while answers run; an engine that ends lets answers finish, or cuts them."""

from __future__ import annotations

import pytest

from serve.engine.requests import EngineStoppedError, UnknownAdapterError
from tests.support.serve.engines import Waiting, adapter_folder, alone, ask, open_tiny, prompt, request


@pytest.fixture
def own():
    """An engine that the test may change."""
    opened = open_tiny(rows=2)
    yield opened.engine
    opened.engine.stop(0)


def test_an_adapter_replaced_or_unloaded_during_an_answer_does_not_change_it(own):
    ids = tuple(prompt(40, 8))
    for change in (lambda: own.load("a0", adapter_folder(3)), lambda: own.unload("a0")):
        version = 0 if "a0" in {s.name for s in own.adapters() if s.folder == adapter_folder(0)} else 3
        running = Waiting()
        own.submit([(request("a0", ids, 100), running)])
        assert running.has_first.wait(60)
        change()
        assert running.is_over.wait(60)
        assert running.ids == alone(version, ids, 100)
    with pytest.raises(UnknownAdapterError):
        own.submit([(request("a0", ids, 1), Waiting())])
    own.load("a0", adapter_folder(4))
    assert ask(own, request("a0", ids, 9))[0].ids == alone(4, ids, 9)


def test_an_adapter_that_finds_all_slots_in_use_is_loaded_when_it_is_asked_for(own):
    running = [Waiting(), Waiting()]
    for index, emit in enumerate(running):
        own.submit([(request(f"a{index}", prompt(index, 4), 100), emit)])
        assert emit.has_first.wait(60)
    assert not own.load("late", adapter_folder(3)).loaded
    ids = tuple(prompt(4, 5))
    assert ask(own, request("late", ids, 6))[0].ids == alone(3, ids, 6)
    assert all(emit.end.reason == "length" for emit in running)


def test_the_end_lets_answers_finish_and_cuts_those_that_take_too_long():
    opened = open_tiny(adapters=1, rows=1)
    running, waiting = Waiting(), Waiting()
    opened.engine.submit([(request("a0", prompt(0, 4), 100), running)])
    assert running.has_first.wait(60)
    opened.engine.submit([(request(None, prompt(0, 4), 100), waiting)])
    opened.engine.stop(0)
    assert {running.end.reason, waiting.end.reason} == {"cut"}
    with pytest.raises(EngineStoppedError):
        opened.engine.submit([(request(None, [1], 1), Waiting())])

    opened, running = open_tiny(adapters=1, rows=1), Waiting()
    opened.engine.submit([(request("a0", prompt(0, 4), 60), running)])
    opened.engine.stop(60)
    assert (running.end.reason, len(running.ids)) == ("length", 60)
