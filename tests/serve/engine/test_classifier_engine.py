"""Rows of classifiers with other numbers of classes share a batch, and each gets its own adapter's probabilities."""

from __future__ import annotations

import functools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.errors import ContextLengthError, JloraError
from jlora.pretrained.load import build, example_batch, load_weights
from jlora.pretrained.source import PretrainedSource
from serve.config import ServeConfig
from serve.engine.adapters import AdapterSlots, StoredAdapter
from serve.engine.classifier_engine import ClassifierEngine
from serve.engine.open_engine import open_engine
from serve.engine.requests import AdapterRefusedError, BusyError, EngineStoppedError, UnknownAdapterError
from tests.support.bank_cases import make_adapters, make_case, make_empty_bank
from tests.support.training import tiny

CLASSES = (2, 5, 3)
BANK_CASE = make_case("plain")


@functools.cache
def _adapter(index):
    """(folder of an adapter, its logits of a batch)."""
    source = PretrainedSource(tiny.model_folder())
    model = build(source.config_with(num_labels=CLASSES[index]))
    base = load_weights(model, source, key=jax.random.key(9), new_head=True)
    config = jlora.LoraConfig(
        r=index + 1, target_modules=["query", "value"], task_type="SEQ_CLS", init_lora_weights=False
    )
    batch = example_batch(model.config)
    adapter = jlora.init(jax.random.key(index), config, base, model.apply, batch)
    folder = tiny.HOME / f"classifier-{index}"
    jlora.save_adapter(folder, adapter, config)
    names = {str(i): f"class {i}" for i in range(CLASSES[index])}
    problem = "multi_label_classification" if index == 2 else "single_label_classification"
    (folder / "labels.json").write_text(json.dumps({"id2label": names, "problem_type": problem}))
    return folder, functools.partial(jlora.adapt(model.apply), base, adapter)


@pytest.fixture(scope="module")
def engine():
    folders = {f"a{index}": _adapter(index)[0] for index in range(3)}
    config = ServeConfig(model=str(tiny.model_folder()), slots=2, max_rank=4, labels=6, rows=4)
    opened = open_engine(config, folders)
    opened.engine.start()
    yield opened.engine
    opened.engine.stop(0)


def _classify(engine, *given):
    return engine.classify(*given).result(60)


def _ids(seed, length):
    return np.random.default_rng(seed).integers(5, 60, length).tolist()


@pytest.mark.parametrize("length", [3, 23, 24])
def test_probabilities_are_those_of_the_adapted_model(engine, length):
    for index in (0, 1, 2, 0):
        rows, (_, logits_of) = [_ids(7 * index + i, length) for i in range(5)], _adapter(index)
        batch = {"input_ids": jnp.asarray(rows), "attention_mask": jnp.ones((5, length), jnp.int32)}
        logits = logits_of(batch)
        expected = jax.nn.sigmoid(logits) if index == 2 else jax.nn.softmax(logits)
        found = _classify(engine, f"a{index}", rows)
        assert found.labels == tuple(f"class {i}" for i in range(CLASSES[index]))
        np.testing.assert_allclose(found.probabilities, expected, rtol=1e-4, atol=1e-5)


def test_token_types_reach_the_model(engine):
    ids = _ids(1, 10)
    types = [0] * 5 + [1] * 5
    with_types = _classify(engine, "a1", [ids, ids], [types, [0] * 10]).probabilities
    assert np.abs(np.subtract(*with_types)).max() > 1e-4
    np.testing.assert_allclose(with_types[1], _classify(engine, "a1", [ids]).probabilities[0], rtol=1e-5)


def test_names_of_classes_are_listed(engine):
    _classify(engine, "a1", [[5]])
    labels = {status.name: status.labels for status in engine.adapters()}
    assert labels["a1"] == tuple(f"class {i}" for i in range(5))


def test_what_cannot_be_classified_is_refused(engine, tmp_path):
    with pytest.raises(UnknownAdapterError):
        _classify(engine, "nobody", [[1]])
    with pytest.raises(ContextLengthError, match="at most"):
        _classify(engine, "a0", [_ids(0, 5000)])
    assert not hasattr(engine, "submit")  # by which the front knows it
    with pytest.raises(AdapterRefusedError):
        engine.load("x", tmp_path)


def test_an_adapter_that_cannot_be_read_hurts_no_other(engine, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in _adapter(0)[0].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    engine.load("copy", copy)
    _classify(engine, "a1", [[5]])
    _classify(engine, "a2", [[5]])  # it has left its slot
    (copy / "labels.json").write_text("{}")
    with pytest.raises(AdapterRefusedError, match="id2label"):
        _classify(engine, "copy", [[5, 6]])
    assert len(_classify(engine, "a0", [[5, 6]]).probabilities[0]) == 2
    engine.unload("copy")


def test_a_replaced_adapter_brings_its_own_classes(engine):
    assert engine.load("new", _adapter(0)[0]).labels == ("class 0", "class 1")
    assert engine.load("new", _adapter(1)[0]).labels == tuple(f"class {i}" for i in range(5))
    assert len(_classify(engine, "new", [[5, 6]]).probabilities[0]) == 5
    engine.unload("new")


def test_adapters_that_keep_all_slots_busy_starve_no_other(engine):
    stop = threading.Event()

    def ask_again_and_again(adapter):
        while not stop.is_set():
            _classify(engine, adapter, [_ids(row, 10) for row in range(40)])

    threads = [threading.Thread(target=ask_again_and_again, args=(name,)) for name in ("a0", "a1", "a0", "a1")]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            assert len(_classify(engine, "a2", [_ids(1, 10), _ids(1, 20)]).probabilities) == 2
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_one_adapters_rows_leave_room_for_anothers(engine):
    rows = [_ids(row, 10) for row in range(engine._limit)]
    with pytest.raises(JloraError, match="at most 256 texts"):
        engine.classify("a0", [*rows, [5]])
    all_of_it = engine.classify("a0", rows)
    with pytest.raises(BusyError, match="rows are waiting, of at most 256"):
        engine.classify("a0", rows)
    assert len(_classify(engine, "a1", rows[:20]).probabilities) == 20
    assert all_of_it.cancel() or all_of_it.done()
    _classify(engine, "a1", [[5]])
    assert engine.counts()["waiting"] == 0


def test_a_failure_of_the_engine_is_an_answer_to_all_that_wait():
    bank = make_empty_bank(BANK_CASE, slots=1)
    read = functools.partial(StoredAdapter, make_adapters(BANK_CASE)[0], ("no", "yes"))
    with ThreadPoolExecutor(1) as executor:
        adapters = AdapterSlots(bank, lambda folder: read(), executor, {"a": Path("a")})
        engine = ClassifierEngine("base", SimpleNamespace(apply=None), None, adapters, read, rows=2, context=40)

        def compute(rows, length):
            if rows:
                raise FloatingPointError("all is lost")

        engine._compute = compute
        engine.start()
        for _ in range(2):
            with pytest.raises(EngineStoppedError, match="the engine has failed: all is lost"):
                engine.classify("a", [[1]] * 5).result(60)
