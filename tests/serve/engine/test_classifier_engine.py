"""Rows of classifiers with other numbers of classes share a batch, and each gets its own adapter's probabilities."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.errors import ContextLengthError
from jlora.pretrained.load import build, example_batch, load_weights
from jlora.pretrained.source import PretrainedSource
from serve.config import ServeConfig
from serve.engine.opening import open_engine
from serve.engine.requests import AdapterRefusedError, UnknownAdapterError
from tests.support.training import tiny

CLASSES = (2, 5, 3)


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


def _ids(seed, length):
    return np.random.default_rng(seed).integers(5, 60, length).tolist()


@pytest.mark.parametrize("length", [3, 23, 24])
def test_probabilities_are_those_of_the_adapted_model(engine, length):
    for index in (0, 1, 2, 0):
        rows, (_, logits_of) = [_ids(7 * index + i, length) for i in range(5)], _adapter(index)
        batch = {"input_ids": jnp.asarray(rows), "attention_mask": jnp.ones((5, length), jnp.int32)}
        logits = logits_of(batch)
        expected = jax.nn.sigmoid(logits) if index == 2 else jax.nn.softmax(logits)
        found = engine.classify(f"a{index}", rows)
        assert found.labels == tuple(f"class {i}" for i in range(CLASSES[index]))
        np.testing.assert_allclose(found.probabilities, expected, rtol=1e-4, atol=1e-5)


def test_token_types_reach_the_model(engine):
    ids = _ids(1, 10)
    types = [0] * 5 + [1] * 5
    with_types = engine.classify("a1", [ids, ids], [types, [0] * 10]).probabilities
    assert np.abs(np.subtract(*with_types)).max() > 1e-4
    np.testing.assert_allclose(with_types[1], engine.classify("a1", [ids]).probabilities[0], rtol=1e-5)


def test_names_of_classes_are_listed(engine):
    engine.classify("a1", [[5]])
    labels = {status.name: status.labels for status in engine.adapters()}
    assert labels["a1"] == tuple(f"class {i}" for i in range(5))


def test_what_cannot_be_classified_is_refused(engine, tmp_path):
    with pytest.raises(UnknownAdapterError):
        engine.classify("nobody", [[1]])
    with pytest.raises(ContextLengthError, match="at most"):
        engine.classify("a0", [_ids(0, 5000)])
    with pytest.raises(AdapterRefusedError, match="classifies"):
        engine.submit(None, None)
    with pytest.raises(AdapterRefusedError):
        engine.load("x", tmp_path)


def test_an_adapter_that_cannot_be_read_hurts_no_other(engine, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in _adapter(0)[0].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    engine.load("copy", copy)
    engine.classify("a1", [[5]])
    engine.classify("a2", [[5]])  # it has left its slot
    (copy / "labels.json").write_text("{}")
    with pytest.raises(AdapterRefusedError, match="id2label"):
        engine.classify("copy", [[5, 6]])
    assert len(engine.classify("a0", [[5, 6]]).probabilities[0]) == 2
    engine.unload("copy")


def test_a_replaced_adapter_brings_its_own_classes(engine):
    assert engine.load("new", _adapter(0)[0]).labels == ("class 0", "class 1")
    assert engine.load("new", _adapter(1)[0]).labels == tuple(f"class {i}" for i in range(5))
    assert len(engine.classify("new", [[5, 6]]).probabilities[0]) == 5
    engine.unload("new")
