import json
import shutil

import numpy as np
import pytest

from jlora.errors import JloraError
from jlora.peft.base_model import base_of
from tests.support.training import tiny
from train.classify import classifier as trained
from train.classify.classifier import load_trained
from train.classify.data.labels import Labels
from train.classify.data.splits import Split

_TEXTS = [text for text, _ in tiny.texts(5, seed=4)]


def _logits(classifier, max_length=16, **options):
    rows = Split(_TEXTS, None, [-1] * 5, list(range(5)), ["x"] * 5)
    return classifier.logits(rows, max_length, **options)


def test_a_run_its_merged_and_its_adapter_are_one_classifier():
    run = tiny.finished_run()
    found = [load_trained(folder) for folder in (run, run / "merged", str(run / "adapter"))]
    logits = [_logits(classifier) for classifier in found]
    assert np.array_equal(logits[0], logits[1])
    assert np.allclose(logits[1], logits[2], atol=1e-5)
    assert not found[1].adapted.adapter
    assert found[2].adapted.adapter
    assert all(classifier.labels == found[0].labels for classifier in found)


def test_batches_and_buckets_change_nothing():
    classifier = load_trained(tiny.finished_run())
    assert np.allclose(_logits(classifier), _logits(classifier, batch_size=2, bucket_count=1), atol=1e-5)


def test_rows_that_are_cut_are_said(caplog):
    _logits(load_trained(tiny.finished_run()), max_length=4)
    assert "5 of 5 rows cut at 4 tokens" in caplog.text


@pytest.mark.parametrize(("task", "names"), [("multi", ("dull", "fine", "long")), ("regression", ("LABEL_0",))])
def test_labels_come_with_either_folder(task, names):
    problem = {"multi": "multi_label_classification", "regression": "regression"}[task]
    run = tiny.finished_run(f"task={problem}", task=task)
    for folder in (run / "merged", run / "adapter"):
        labels = load_trained(folder).labels
        assert (labels.problem_type, labels.names) == (problem, names)


LABELS = {
    "no names": ({"problem_type": None}, "id2label: expected an object of id: class name; found None"),
    "a list": ({"id2label": ["a", "b"]}, r"id2label: expected an object .*; found \['a', 'b'\]"),
    "numbers for names": ({"id2label": {"0": 1, "1": 2}}, "id2label: expected an object"),
    "ids that are none": ({"id2label": {"a": "x", "b": "y"}}, r"id2label: expected the ids 0, 1, .*\['a', 'b'\]"),
    "ids with a gap": ({"id2label": {"0": "x", "2": "y"}}, "id2label: expected the ids 0, 1, ..."),
    "an id in two ways": ({"id2label": {"0": "x", "00": "y"}}, "id2label: expected the ids 0, 1, ..."),
    "no names in it": ({"id2label": {}}, "id2label: expected the ids"),
    "two outputs of a regression": (
        {"id2label": {"0": "x", "1": "y"}, "problem_type": "regression"},
        "id2label: expected one output",
    ),
    "one class": (
        {"id2label": {"0": "x"}, "problem_type": "single_label_classification"},
        "id2label: expected two classes or more",
    ),
    "no task": (
        {"id2label": {"0": "x", "1": "y"}, "problem_type": ["x"]},
        "problem_type: expected one of single",
    ),
}


@pytest.mark.parametrize("name", LABELS)
def test_class_names_that_are_none(name, tmp_path):
    stored, message = LABELS[name]
    (tmp_path / "labels.json").write_text(json.dumps(stored))
    with pytest.raises(JloraError, match=rf"labels\.json: {message}"):
        trained.read_label_entries(tmp_path / "labels.json")


def test_class_names_are_all_that_is_taken_of_their_file(tmp_path):
    """It is laid over the base's config, whose sizes are the base's own."""
    names = Labels("single_label_classification", tuple("abcdefghijkl"))
    stored = json.loads(json.dumps(names.config_entries() | {"hidden_size": 10**9}))
    (tmp_path / "labels.json").write_text(json.dumps(stored))
    assert trained.read_label_entries(tmp_path / "labels.json") == names.config_entries()


def test_an_adapter_alone_is_found_where_nothing_was_merged(tmp_path):
    run = tiny.train(tmp_path / "run", "export.merged=false")
    assert load_trained(run).adapted.adapter


def test_a_base_by_another_name_than_the_adapter_has_it(tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(tiny.finished_run() / "adapter", folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    expected = _logits(load_trained(tiny.finished_run() / "adapter"))
    for name in (None, str(tmp_path / "moved")):
        (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": name}))
        with pytest.raises(JloraError, match="--base" if name is None else "moved"):
            load_trained(folder)
        assert np.array_equal(_logits(load_trained(folder, str(tiny.model_folder()))), expected)


@pytest.mark.parametrize("there", [True, False])
def test_what_is_no_classifier_is_refused(there, tmp_path):
    folder = tmp_path / "folder"
    if there:
        (folder / "checkpoints").mkdir(parents=True)
    with pytest.raises(JloraError, match="found none of them" if there else "found no such folder"):
        load_trained(folder)


def test_a_run_folder_is_no_adapter_folder():
    with pytest.raises(JloraError, match=r"adapter_config\.json"):
        base_of(tiny.finished_run())


def test_a_head_that_neither_base_nor_adapter_has_is_never_made_up(tmp_path):
    run = tiny.train(tmp_path / "run", "lora.modules_to_save=[]")
    with pytest.raises(JloraError, match=r"expected classifier\.bias, classifier\.weight in the base or the adapter"):
        load_trained(run / "adapter")
    assert _logits(load_trained(run)).shape == (5, 2)  # merged/ has it


def test_a_hub_that_is_silent_is_asked_once(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(trained, "settle_hub", asked.append)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(JloraError, match="me/base"):
        load_trained(tiny.finished_run() / "adapter", "me/base")
    assert asked == ["me/base"]
