"""Answers that share steps are token for token those that each request gets alone."""

from __future__ import annotations

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.errors import ContextLengthError, JloraError
from serve.engine.active_adapters import replace_place, select_slots
from serve.engine.prefill_and_decode import extend, insert, repack
from serve.engine.requests import AdapterRefusedError, UnknownAdapterError
from tests.support.serve.engines import (
    PLACES,
    Waiting,
    adapter_folder,
    alone,
    ask,
    base,
    load,
    open_tiny,
    prompt,
    request,
)


@pytest.fixture(scope="module")
def engine():
    opened = open_tiny(places=PLACES)
    yield opened.engine
    opened.engine.stop(0)


@pytest.fixture
def own():
    """An engine that the test may end or change."""
    opened = open_tiny(rows=2)
    yield opened.engine
    opened.engine.stop(0)


@pytest.mark.parametrize(("rows", "slots"), [(16, 8), (4, 2)])
def test_a_mixed_batch_is_what_each_request_gives_alone(rows, slots):
    names = [None, 0, 1, 2, 3, 4, 5, 6, 7, None, 7, 3, 6, 1, 1, 0]
    prompts = [tuple(prompt(row, 3 + 11 * (row % 7))) for row in range(16)]
    requests = [
        request(None if name is None else f"a{name}", ids, 20) for name, ids in zip(names, prompts, strict=True)
    ]
    engine = open_tiny(8, rows=rows, slots=slots).engine
    for name, ids, found in zip(names, prompts, ask(engine, *requests), strict=True):
        assert found.ids == alone(name, ids, 20), (name, len(ids))
        assert found.end.reason == "length"
    engine.stop(0)


def test_log_probabilities_are_those_of_the_adapted_model(engine):
    adapted = base().adapted
    ids = prompt(5, 9)
    (found,) = ask(engine, request("a2", ids, 6, top_logprobs=4))
    row = jnp.asarray([ids + found.ids])
    batch = {"input_ids": row, "attention_mask": jnp.ones_like(row)}
    logits = jlora.adapt(adapted.model.apply)(adapted.base, load(2), batch)
    expected = jax.nn.log_softmax(logits[0, len(ids) - 1 : -1])
    for token, row in zip(found.tokens, expected, strict=True):
        best = jnp.argsort(-row)[:4]
        assert [index for index, _ in token.top] == best.tolist()
        np.testing.assert_allclose([value for _, value in token.top], row[best], rtol=1e-5, atol=1e-5)
        assert token.logprob == pytest.approx(float(row[token.id]), rel=1e-5)


def test_a_prompt_that_begins_like_an_earlier_one_is_not_read_again(engine):
    ids = prompt(77, 60)
    ask(engine, request("a1", ids, 4))
    before = engine.counts()["prefix_tokens"]
    longer = tuple(ids + prompt(78, 9))
    (found,) = ask(engine, request("a1", longer, 10))
    assert engine.counts()["prefix_tokens"] - before == 60
    assert found.ids == alone(1, longer, 10)


def test_two_adapters_share_no_prefix(engine):
    ids = tuple(prompt(91, 50))
    ask(engine, request("a3", ids, 3))
    before = engine.counts()["prefix_tokens"]
    (found,) = ask(engine, request("a0", ids, 10))
    assert engine.counts()["prefix_tokens"] == before
    assert found.ids == alone(0, ids, 10)


@pytest.mark.parametrize("place", [1, 30, 63, 64, 69])
def test_an_adapter_applies_from_a_token_on_and_reuses_what_the_base_has_read(engine, place):
    ids = prompt(200 + place, 70)
    ask(engine, request(None, ids[:place], 1))
    before = engine.counts()["prefix_tokens"]
    (found,) = ask(engine, request("a2", ids, 8, adapter_from=place))
    assert engine.counts()["prefix_tokens"] - before == place
    assert found.ids == _from_a_token_on(2, ids, place, 8)


def _from_a_token_on(index, ids, place, count):
    """The greedy tokens if the base reads the first tokens, and the adapter all others."""
    adapted, found = base().adapted, []

    def extend(weights, batch, cache):
        hidden, cache = adapted.model.apply(weights, batch, cache, method="extend")
        return adapted.model.apply(weights, hidden[:, -1], method="logits"), cache

    cache = adapted.model.empty_cache(1, len(ids) + count, jnp.float32)
    piece, adapter = ids[:place], None
    for number in range(count + 1):
        row = jnp.asarray([piece])
        batch = {"input_ids": row, "attention_mask": jnp.ones_like(row)}
        logits, cache = jlora.adapt(extend)(adapted.base, adapter, batch, cache)
        if number:
            found.append(int(logits[0].argmax()))
        piece, adapter = (ids[place:], load(index)) if not number else ([found[-1]], adapter)
    return found


def test_the_same_seed_gives_the_same_answer_whatever_else_is_answered(engine):
    ids = prompt(3, 12)
    sampled = [request("a1", ids, 16, temperature=1.0, top_p=0.9, seed=seed) for seed in (7, 8)]
    first, other = ask(engine, *sampled)
    busy = [request(f"a{row % 5}", prompt(row, 20), 16, temperature=1.5, seed=row) for row in range(6)]
    again = ask(engine, *busy, sampled[0])[-1]
    assert first.ids == again.ids
    assert first.ids != other.ids


def test_a_stop_token_ends_an_answer_and_is_not_part_of_it(engine):
    ids = tuple(prompt(21, 10))
    whole = alone(3, ids, 12)
    stop = whole[5]
    (found,) = ask(engine, request("a3", ids, 12, stop_ids=frozenset([stop])))
    assert found.ids == whole[: whole.index(stop)]
    assert found.end.reason == "stop"


def test_nothing_compiles_after_the_warm_up(engine):
    counts = _count_compiled()
    for rows in (1, 4, 2, 3):
        lengths = [2, 64, 65, 107][:rows]
        ask(engine, *(request(f"a{row}", prompt(row, length), 13, seed=3) for row, length in enumerate(lengths)))
        ask(engine, request("a4", prompt(rows, 30), 80, temperature=0.7, top_p=0.5, top_logprobs=3))
    ids = prompt(9, 100)
    ask(engine, request("a1", ids, 3))
    for length in (40, 100, 30):  # what is known of them is in the larger memory
        ask(engine, request("a1", ids[:length], 4))
    ask(engine, request("a1", prompt(10, 5), 40))  # in which the rows get smaller
    assert _count_compiled() == counts


def _count_compiled():
    compiled = (
        extend,
        insert,
        repack,
        select_slots,
        replace_place,
    )
    return [fn._cache_size() for fn in compiled]


def test_an_answer_that_is_cancelled_frees_its_row(engine):
    found = Waiting()
    (number,) = engine.submit([(request("a0", prompt(1, 5), 110), found)])
    assert found.has_first.wait(60)
    engine.cancel(number)
    assert found.is_over.wait(60)
    assert found.end.reason == "cut"
    assert len(found.ids) < 110
    engine.cancel(number)  # it has ended
    assert engine.counts()["running"] == 0


def test_what_cannot_be_answered_is_refused(engine):
    with pytest.raises(UnknownAdapterError, match="'nobody'"):
        engine.submit([(request("nobody", [1], 1), Waiting())])
    with pytest.raises(ContextLengthError, match="at most 120 tokens together with max_tokens = 50, found 71"):
        engine.submit([(request(None, prompt(0, 71), 50), Waiting())])
    with pytest.raises(JloraError, match=r"at most 256 answers at once \(`waiting`\), found 257"):
        engine.submit([(request(None, [1], 1), Waiting())] * 257)
    fitting = Waiting()
    with pytest.raises(UnknownAdapterError):
        engine.submit([(request("a0", [1], 1), fitting), (request("nobody", [1], 1), Waiting())])
    ask(engine, request("a0", [1], 1))
    assert fitting.end is None  # all or none


def test_an_adapter_that_cannot_be_read_is_an_error_and_never_the_bases_answer(own, tmp_path):
    with pytest.raises(AdapterRefusedError, match="nowhere"):
        own.load("nowhere", tmp_path / "nowhere")
    with pytest.raises(AdapterRefusedError, match="`max_rank`, found 6"):
        own.load("large", adapter_folder(9, r=6))
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in adapter_folder(1).iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    own.load("copy", copy)
    ask(own, *(request(f"a{row}", prompt(row, 5), 2) for row in range(3)))  # it has left its slot
    (copy / "adapter_model.safetensors").write_bytes(b"damaged")
    (found,) = ask(own, request("copy", prompt(0, 5), 4))
    assert (found.ids, found.end.reason) == ([], "error")
    assert "copy" in found.end.message


def test_an_adapter_whose_numbers_overflow_is_an_error(own, tmp_path):
    huge = {path: jlora.LowRank(e.a * 1e30, e.b * 1e30, e.scale, e.spec, e.ranks) for path, e in load(0).items()}
    config = jlora.LoraConfig(r=1, lora_alpha=16, target_modules="all-linear")
    jlora.save_adapter(tmp_path / "huge", huge, config)
    own.load("huge", tmp_path / "huge")
    (found,) = ask(own, request("huge", prompt(0, 5), 4))
    assert (found.ids, found.end.reason) == ([], "error")
    ids = tuple(prompt(1, 5))
    assert ask(own, request("a1", ids, 4))[0].ids == alone(1, ids, 4)


@pytest.mark.parametrize(("length", "answer", "places"), [(10, 50, PLACES[0]), (100, 20, PLACES[1])])
def test_nan_in_a_row_reaches_no_other(engine, length, answer, places):
    ids, found = tuple(prompt(8, length)), []
    first, other = Waiting(), Waiting()

    def emit(token):
        first(token)
        if other.tokens and other.end is None and not found:  # both have a row
            (row,) = (row for row, answer in engine._rows.items() if answer.emit is emit)
            memory = jax.tree.map(lambda part: part[:1] * jnp.nan, engine._pool._memory)
            engine._pool._memory = insert(engine._pool._memory, np.int32(row), memory)
            found.append(memory.places)

    engine.submit([(request("a1", ids, answer), other), (request("a0", ids, answer), emit)])
    assert first.is_over.wait(60)
    for short in ask(engine, *[request("a2", prompt(9, 10), 10)] * 3):  # which fill only a part of its row
        assert short.ids == alone(2, tuple(prompt(9, 10)), 10)
    assert other.is_over.wait(60)
    assert (found, first.end.reason) == ([places], "error")
    assert other.ids == alone(1, ids, answer)


def test_nan_of_one_answer_reaches_no_other(tmp_path):
    opened = open_tiny(rows=1, places=PLACES)
    huge = {path: jlora.LowRank(e.a * 1e30, e.b * 1e30, e.scale, e.spec, e.ranks) for path, e in load(0).items()}
    jlora.save_adapter(tmp_path / "huge", huge, jlora.LoraConfig(r=1, lora_alpha=16, target_modules="all-linear"))
    opened.engine.load("huge", tmp_path / "huge")
    ids = tuple(prompt(1, 5))
    for length in (5, 100):
        assert ask(opened.engine, request("huge", prompt(0, length), 4))[0].end.reason == "error"
        assert ask(opened.engine, request("a1", ids, 4))[0].ids == alone(1, ids, 4)
    opened.engine.stop(0)


def test_a_request_that_waits_for_a_slot_is_not_passed_for_ever(own):
    stop = threading.Event()

    def keep_both_slots_in_use(name):
        while not stop.is_set():
            ask(own, request(name, prompt(1, 4), 30))

    threads = [threading.Thread(target=keep_both_slots_in_use, args=(name,)) for name in ("a0", "a1", "a0", "a1")]
    for thread in threads:
        thread.start()
    time.sleep(1)
    try:
        ids = tuple(prompt(6, 7))
        assert ask(own, request("a4", ids, 5))[0].ids == alone(4, ids, 5)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
