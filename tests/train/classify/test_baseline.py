import numpy as np
import pytest

from train.classify import metrics
from train.classify.baseline import constant_logits, no_better
from train.classify.data.labels import Labels

_DRAW = np.random.default_rng(0)
_TASKS = {
    "single_label_classification": (("no", "yes"), (_DRAW.random(400) < 0.7).astype(np.int32)),
    "multi_label_classification": (("a", "b", "c"), (_DRAW.random((400, 3)) < [0.8, 0.5, 0.1]).astype(np.float32)),
    "regression": (("LABEL_0",), _DRAW.normal(2.0, 1.0, 400).astype(np.float32)),
}


def _found(kind, logits, labels):
    return metrics.compute(kind, logits, labels)


@pytest.mark.parametrize("kind", _TASKS)
def test_a_model_without_input_has_learnt_nothing(kind):
    names, labels = _TASKS[kind]
    constant = np.tile(constant_logits(kind, labels, len(names)), (400, 1))
    said = no_better(Labels(kind, names), labels, _found(kind, constant, labels), "train.epochs")
    assert "on 400 rows is no better than" in said
    assert ("'yes'" in said) == (kind == "single_label_classification")


@pytest.mark.parametrize("kind", _TASKS)
def test_one_that_knows_the_labels_has(kind):
    names, labels = _TASKS[kind]
    right = {
        "single_label_classification": lambda: np.eye(2)[labels],
        "multi_label_classification": lambda: labels - 0.5,
        "regression": lambda: labels[:, None],
    }[kind]()
    assert no_better(Labels(kind, names), labels, _found(kind, right, labels), "") == ""


def test_chance_is_not_taken_for_something_learnt():
    names, labels = _TASKS["single_label_classification"]
    logits = np.tile(np.array([0.0, 1.0]), (400, 1))
    logits[np.flatnonzero(labels == 0)[:4]] = [1.0, 0.0]  # four more rows right than by the majority class
    found = _found("single_label_classification", logits, labels)
    assert found["accuracy"] > labels.mean()
    assert no_better(Labels("single_label_classification", names), labels, found | {"mcc": 0.05}, "")
    assert no_better(Labels("single_label_classification", names), labels, found | {"mcc": 0.3}, "") == ""


def test_the_constant_is_that_of_the_validation_rows():
    """A constant answer may be right there more often than the class that most training rows have."""
    labels = np.array([1] * 25 + [0] * 15, np.int32)
    found = _found("single_label_classification", np.tile([0.0, 1.0], (40, 1)), labels)
    assert "accuracy 0.6250 on 40 rows is no better" in no_better(
        Labels("single_label_classification", ("no", "yes")), labels, found, "train.max_steps"
    )


def test_without_labelled_rows_nothing_is_said():
    assert no_better(Labels("single_label_classification", ("no", "yes")), np.full(5, -1, np.int32), {}, "") == ""
