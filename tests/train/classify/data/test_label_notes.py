import numpy as np
import pytest

from tests.train.classify.data.test_labels import REGRESSION, SINGLE, _split
from train.classify.data.label_notes import describe_labels, near_equal
from train.classify.data.labels import Labels, encode_labels, infer_labels


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (["b", "a", "b"], "3 rows, single_label_classification, because the labels are text (task=... overrides this), "
                          "2 classes: a 1, b 2"),
        (["0.0", "1.0"], "2 rows, single_label_classification, because the labels are ids from 0, written as decimal "
                         "numbers (task=... overrides this), 2 classes: LABEL_0 1, LABEL_1 1"),
        ([0.5, 2.0], "2 rows, regression, because the labels are decimal numbers (task=... overrides this), scores: "
                     "0.5 to 2, mean 1.25"),
        (["a;b", "a", ""], "3 rows, multi_label_classification, because 'a;b' is several labels "
                           "(task=... overrides this), 2 classes: a 2, b 1; 1 with none of them"),
        ([[1, 0], [0, 0]], "2 rows, multi_label_classification, because the labels have a 0 or 1 for each "
                           "class (task=... overrides this), 2 classes: LABEL_0 1, LABEL_1 0; 1 with none of them"),
    ],
)  # fmt: skip
def test_what_the_labels_are_taken_for_is_said(raw, line):
    labels = infer_labels(_split(*raw))
    assert describe_labels(labels, encode_labels(_split(*raw), labels, "train"), "train") == f"train: {line}"


def test_of_other_splits_the_counts_are_said():
    labels = Labels(SINGLE, tuple(f"c{i}" for i in range(30)), reason="x")
    line = describe_labels(labels, np.array([0, 2, -1], np.int32), "test")
    assert line.startswith("test: 3 rows, single_label_classification, 30 classes: c0 1, c1 0, c2 1, ")
    assert line.endswith("c19 0 and 10 more; 1 without a label")
    assert describe_labels(Labels(REGRESSION, ("LABEL_0",)), np.array([np.nan], np.float32), "test").endswith(
        "scores: none; 1 without a label"
    )


def test_classes_that_are_nearly_one_are_said():
    assert near_equal(Labels(SINGLE, ("neg", "pos"))) == []
    (line,) = near_equal(Labels(SINGLE, (" pos", "Pos", "neg", "pos")))
    assert line.startswith("' pos', 'Pos', 'pos' differ only in case, spaces or Unicode form")
    assert "data.label_names" in line
