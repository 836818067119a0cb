import json

import numpy as np
import pytest

from jlora.errors import JloraError
from train.classify.data.labels import (
    Labels,
    encode_labels,
    encode_rows,
    infer_labels,
    is_labelled,
    labels_of_config,
    of_one_kind,
)
from train.classify.data.splits import Split

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def _split(*labels, file="a.csv"):
    rows = list(range(1, len(labels) + 1))
    return Split([f"text {row}" for row in rows], None, list(labels), rows, [file] * len(rows))


@pytest.mark.parametrize(
    ("raw", "problem_type", "names", "encoded"),
    [
        ([0, 2, 1], SINGLE, ("LABEL_0", "LABEL_1", "LABEL_2"), [0, 2, 1]),
        (["1", "0"], SINGLE, ("LABEL_0", "LABEL_1"), [1, 0]),
        ([True, False], SINGLE, ("LABEL_0", "LABEL_1"), [1, 0]),
        (["pos", "neg", "pos"], SINGLE, ("neg", "pos"), [1, 0, 1]),
        (["3.800", "5.000"], REGRESSION, ("LABEL_0",), [3.8, 5.0]),
        ([0.5, 1.0], REGRESSION, ("LABEL_0",), [0.5, 1.0]),
        (["3.800", "4", "1.250"], REGRESSION, ("LABEL_0",), [3.8, 4.0, 1.25]),
        ([["b"], [], ["a", "b"]], MULTI, ("a", "b"), [[0, 1], [0, 0], [1, 1]]),
        ([[1], [0]], MULTI, ("LABEL_0", "LABEL_1"), [[0, 1], [1, 0]]),
        (["a;b", "a", "", "c ; a"], MULTI, ("a", "b", "c"), [[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 1]]),
        (["0;2", "1"], MULTI, ("LABEL_0", "LABEL_1", "LABEL_2"), [[1, 0, 1], [0, 1, 0]]),
        ([[1, 0, 1], [0, 0, 0]], MULTI, ("LABEL_0", "LABEL_1", "LABEL_2"), [[1, 0, 1], [0, 0, 0]]),
        ([[1.0, 0.0], ["0", True]], MULTI, ("LABEL_0", "LABEL_1"), [[1, 0], [0, 1]]),
        (["0.0", "1.0", "1.0"], SINGLE, ("LABEL_0", "LABEL_1"), [0, 1, 1]),
        ([0.0, 2.0, 1.0], SINGLE, ("LABEL_0", "LABEL_1", "LABEL_2"), [0, 2, 1]),
        (["1.0", "2.0", "5.0"], REGRESSION, ("LABEL_0",), [1, 2, 5]),
    ],
)
def test_the_labels_tell_the_task(raw, problem_type, names, encoded):
    labels = infer_labels(_split(*raw))
    assert (labels.problem_type, labels.names, len(labels)) == (problem_type, names, len(names))
    numbers = encode_labels(_split(*raw), labels, "train")
    assert numbers.dtype == (np.int32 if problem_type == SINGLE else np.float32)
    np.testing.assert_array_equal(numbers, np.array(encoded, numbers.dtype))
    assert is_labelled(numbers).all()


@pytest.mark.parametrize(
    ("raw", "task", "encoded"),
    [
        ([3, "4", 0.5], REGRESSION, [3, 4, 0.5]),
        (["1.0", 0.0], SINGLE, [1, 0]),
        (["a;b", "", " b "], MULTI, [[1, 1], [0, 0], [0, 1]]),
        (["3,5", "4", "0,25"], REGRESSION, [3.5, 4, 0.25]),
        (["3,5", "4,0"], SINGLE, [0, 1]),
        (["a;b", "a"], SINGLE, [1, 0]),
        (["0.0", "1.0"], REGRESSION, [0, 1]),
    ],
)
def test_the_configured_task_decides(raw, task, encoded):
    labels = infer_labels(_split(*raw), task)
    assert labels.problem_type == task
    np.testing.assert_array_equal(encode_labels(_split(*raw), labels, "train"), np.array(encoded, np.float32))


def test_given_names_take_names_and_ids():
    labels = infer_labels(_split("yes", "0", 1), names=("no", "yes"))
    assert encode_labels(_split("yes", "0", 1, 1.0), labels, "train").tolist() == [1, 0, 1, 1]
    assert infer_labels(_split([0], ["yes"]), names=("no", "yes")).problem_type == MULTI


def test_numbers_are_no_ids_of_names_that_were_collected_from_text():
    labels = infer_labels(_split("neg", "pos"))
    with pytest.raises(JloraError, match="expected one of neg, pos; found the label 1"):
        encode_labels(_split("neg", 1), labels, "validation")


def test_text_is_a_name_before_it_is_an_id():
    labels = Labels(SINGLE, ("1", "2"))
    assert encode_labels(_split("1", "2", 1), labels, "train").tolist() == [0, 1, 1]


def test_unlabelled_rows_of_a_test_split():
    single = encode_labels(_split(-1, "-1", 0), Labels(SINGLE, ("a", "b")), "test")
    several = encode_labels(_split(-1, ["b"], [-1]), Labels(MULTI, ("a", "b")), "test")
    scores = encode_labels(_split(-1.0, "-1"), Labels(REGRESSION, ("LABEL_0",)), "test")
    assert is_labelled(single).tolist() == [False, False, True]
    assert is_labelled(several).tolist() == [False, True, False]
    assert is_labelled(scores).tolist() == [False, False]


def test_minus_one_among_scores_is_a_score():
    scores = encode_labels(_split(-1.0, 0.5), Labels(REGRESSION, ("LABEL_0",)), "test")
    assert scores.tolist() == [-1.0, 0.5]
    assert is_labelled(scores).all()


@pytest.mark.parametrize(
    ("raw", "task", "message"),
    [
        (
            ["0", "1", "1", "abc"],
            None,
            r"data row 4: expected a whole number as in most rows.*; found the label 'abc'",
        ),
        ([0, 1, 1, 0.5], None, r"data row 4: expected a whole number.*; found the label 0\.5"),
        (["a", "b", 1], None, r"data row 3: expected text as in most rows.*; found the label 1"),
        (
            [0, 1, 0, 7],
            None,
            r"data row 4: expected whole numbers from 0 .*there are 0, 1, 7.*; found the label 7",
        ),
        (
            ["3,5", "", "4"],
            None,
            r"data row 1: expected a number with a decimal point; found the label '3,5'\. Set task=regression",
        ),
        (
            ["half \ud83d", "a"],
            None,
            r"data row 1: the label: expected text in whole Unicode characters, found half of one",
        ),
        ([["a", "\ud83d"], ["a"]], None, r"data row 1: the label: expected text in whole .* Delete it"),
        (
            [0, 1, -1],
            None,
            r"data row 3: expected .*; found the label -1\. -1 marks a row without a label, which only data\.test",
        ),
        (
            ["a", "", "b"],
            None,
            r"data row 2: expected text, as most rows have; found an empty label\. Fill it in; or data\.skip_bad_rows",
        ),
        (["a", None, "b"], None, r"data row 2: expected text.*; found an empty label"),
        (["", ""], None, r"data row 1: expected a label; found an empty label\. Fill it in; or"),
        (["a", "a"], None, r"expected two classes or more, found 'a' alone"),
        ([{"a": 1}, {"b": 1}], None, r"data row 1: expected text, .*; found the label \{'a': 1\}"),
        ([["a"], "b"], None, r"data row 2: expected a list.*; found the label 'b'"),
        (
            [["a"], ["b"], "c"],
            None,
            r"data row 3: expected a list .*; found the label 'c'\. Write it as a list too, such as \[\"a\"\]\. data",
        ),
        ([[], []], None, r"no row has a label"),
        ([1, 2], MULTI, r"data row 1: expected a list of labels, or text such as a;b.*; found the label 1"),
        (["0.5", "1.5"], SINGLE, r"data row 1: expected whole numbers.*; found the label '0\.5'"),
    ],
)
def test_training_labels_that_do_not_fit_are_refused_with_their_row(raw, task, message):
    with pytest.raises(JloraError, match="a.csv(, |: )" + message):
        infer_labels(_split(*raw), task)


@pytest.mark.parametrize(
    ("labels", "value", "message"),
    [
        (
            Labels(SINGLE, ("LABEL_0", "LABEL_1")),
            2,
            r"expected a class id from 0 to 1.*; found the label 2",
        ),
        (
            Labels(SINGLE, ("neg", "pos")),
            "good",
            r"expected a class id from 0 to 1 or one of neg, pos.*; found the label 'good'",
        ),
        (Labels(SINGLE, ("neg", "pos"), numbers_are_ids=False), 1, r"expected one of neg, pos.*; found the label 1"),
        (
            Labels(SINGLE, ("neg", "pos")),
            -1,
            r"; found the label -1\. -1 marks a row without a label, which only data\.test",
        ),
        (Labels(SINGLE, ("neg", "pos")), None, "an empty label"),
        (Labels(SINGLE, tuple("abcdefghijkl")), "z", r"a, b, c, d, e, f, g, h, i, j \.\.\. \(12 in all\)"),
        (
            Labels(REGRESSION, ("LABEL_0",)),
            "high",
            r"expected a finite number \(task=regression\).*; found the label 'high'",
        ),
        (Labels(REGRESSION, ("LABEL_0",)), float("inf"), "expected a finite number"),
        (Labels(REGRESSION, ("LABEL_0",)), float("nan"), "expected a finite number"),
        (
            Labels(MULTI, ("a", "b")),
            ["a", "c"],
            r"expected a class id from 0 to 1 or one of a, b.*; found the label 'c'",
        ),
        (Labels(MULTI, ("a", "b")), [2], "the label 2"),
        (Labels(MULTI, ("a", "b")), 0, "expected a list of labels"),
    ],
)
def test_validation_labels_that_do_not_fit_are_refused_with_their_row(labels, value, message):
    good = {SINGLE: labels.names[0], REGRESSION: 0.5, MULTI: [labels.names[0]]}[labels.problem_type]
    with pytest.raises(JloraError, match=r"b\.csv, data row 3: expected " + f".*{message.removeprefix('expected ')}"):
        encode_labels(_split(good, good, value, file="b.csv"), labels, "validation")
    with pytest.raises(JloraError, match=r"\. data\.skip_bad_rows=true leaves such rows out and counts them$"):
        encode_rows(_split(good, good, value, file="b.csv"), labels, "validation", skip=False)


@pytest.mark.parametrize("raw", [[1, 2, 3], ["1", "2"], [["5"], ["6"]]])
def test_ids_that_do_not_begin_with_0_are_refused_with_what_names_them(raw):
    with pytest.raises(
        JloraError, match=r"^a\.csv: expected class ids from 0; found [15] to .*data\.label_names=\{[15]: "
    ):
        infer_labels(_split(*raw))


@pytest.mark.parametrize(
    ("labels", "value", "message"),
    [
        (Labels(MULTI, ("a", "b", "c"), multi_hot=True), [1, 0], "expected a list of 3 numbers, 0 or 1 for each class"),
        (Labels(MULTI, ("a", "b"), multi_hot=True), [1, 2], "expected a list of 2 numbers, 0 or 1 for each class"),
        (
            Labels(SINGLE, ("Pos", "neg"), numbers_are_ids=False),
            "pos ",
            "found the label 'pos '\\. 'Pos' differs from it only in case, spaces or",
        ),
    ],
)
def test_a_label_that_is_nearly_right_is_refused_too(labels, value, message):
    with pytest.raises(JloraError, match=rf"b\.csv, data row 1: .*{message}"):
        encode_labels(_split(value, file="b.csv"), labels, "validation")


def test_zeros_and_ones_of_a_trained_model_are_seen_again():
    labels = labels_of_config({0: "a", 1: "b", 2: "c"}, MULTI)
    assert encode_labels(_split([1, 0, 1], -1, [0, 0, 0]), labels, "test").tolist()[::2] == [[1, 0, 1], [0, 0, 0]]
    assert encode_labels(_split([1, 0], [2]), labels, "test").tolist() == [[1, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("odd", [[1, 0], [1, 0, 2], [1]])
def test_a_list_that_does_not_fit_zeros_and_ones_is_refused_or_left_out(odd):
    split = _split([1, 0, 0], [0, 1, 0], odd, [0, 0, 1])
    labels = infer_labels(split)
    assert (len(labels), labels.multi_hot) == (3, True)
    expected = r"data row 3: expected a list of 3 numbers, 0 or 1 for each class; found the label"
    for known in (labels, labels_of_config(dict(enumerate("abc")), MULTI)):
        with pytest.raises(JloraError, match=expected):
            encode_labels(split, known, "train")
    rows, encoded, _ = encode_rows(split, infer_labels(of_one_kind(split)), "train", skip=True)
    assert (rows.row, encoded.tolist()) == ([1, 2, 4], [[1, 0, 0], [0, 1, 0], [0, 0, 1]])


def test_names_of_zeros_and_ones_are_those_that_are_given():
    assert infer_labels(_split([1, 0], [0, 1]), names=("x", "y")).names == ("x", "y")
    assert infer_labels(_split([1, 0], [0, 1]), names=("x", "y", "z")).multi_hot is False


@pytest.mark.parametrize(
    ("raw", "kept"),
    [
        ([0, 1, None, "", "NA", 1], [0, 1, 5]),
        (["a", "b", 3, "half \ud83d"], [0, 1]),
        (["0.5", "1.5", "2", "x"], [0, 1, 2]),
    ],
)
def test_rows_whose_labels_do_not_fit_may_be_left_out(raw, kept):
    split = _split(*raw)
    labels = infer_labels(of_one_kind(split))
    rows, encoded, errors = encode_rows(split, labels, "train", skip=True)
    assert [row - 1 for row in rows.row] == kept
    assert (len(encoded), len(errors)) == (len(kept), len(raw) - len(kept))
    assert all(error.startswith("a.csv, data row ") for error in errors)


def test_one_name_is_no_classification():
    with pytest.raises(JloraError, match=r"^data\.label_names.*two classes or more, found 'a' alone"):
        infer_labels(_split("a"), names=("a",))


def test_a_class_that_was_split_off_is_not_said_to_be_missing():
    rows = _split("no", "yes")
    splits = {"train": rows.take([0]), "validation": rows.take([1])}
    expected = r"'no' alone among the 1 row left for training; 1 row became validation data.* data\.validation=FILE"
    with pytest.raises(JloraError, match=expected):
        infer_labels(splits["train"], splits=splits)


@pytest.mark.parametrize(
    "labels",
    [Labels(SINGLE, tuple("abcdefghijkl")), Labels(REGRESSION, ("LABEL_0",)), Labels(MULTI, ("a", "b"))],
)
def test_a_config_gives_the_labels_back(labels):
    entries = json.loads(json.dumps(labels.config_entries()))
    assert labels_of_config(entries["id2label"], entries["problem_type"]) == labels
    assert entries["label2id"] == {name: int(index) for index, name in entries["id2label"].items()}


def test_a_config_without_a_problem_type_means_what_transformers_takes_it_for():
    assert labels_of_config({0: "LABEL_0"}, None).problem_type == REGRESSION
    assert labels_of_config({0: "a", 1: "b"}, None).problem_type == SINGLE
