import math

import pytest

from train.classify.data.label_values import (
    are_class_ids,
    as_key,
    is_yes,
    label_kind,
    multi_hot_length,
    number,
    parse_lists,
    spelling,
    to_class_id,
)


@pytest.mark.parametrize(
    ("value", "kind", "number"),
    [
        (1, "whole number", 1),
        ("-1", "whole number", -1),
        (True, "whole number", 1),
        (2.0, "decimal number", 2),
        ("2.000", "decimal number", 2),
        ("3.8", "decimal number", None),
        ("1e-3", "decimal number", None),
        (math.inf, "decimal number", None),
        ("positive", "text", None),
        ("nan", "text", None),
        ("1 star", "text", None),
        ([1], "list", None),
        ("", "nothing", None),
        (None, "nothing", None),
        (math.nan, "nothing", None),
        ({"a": 1}, "something else", None),
        ("half \ud83d", "something else", None),
        ("9" * 5000, "whole number", None),
        ("3,5", "text", None),
    ],
)
def test_kinds_of_labels_and_the_whole_numbers_among_them(value, kind, number):
    assert label_kind(value) == kind
    assert to_class_id(value) == number


@pytest.mark.parametrize(
    ("value", "score"), [("3,5", 3.5), ("-0,25", -0.25), ("3.5", 3.5), (2, 2.0), ("1e3", 1000.0), (10**400, math.inf)]
)
def test_numbers_are_scores_also_with_a_decimal_comma(value, score):
    assert number(value) == score


@pytest.mark.parametrize("value", ["high", "1,2,3", None, "", [1]])
def test_what_is_no_score(value):
    assert math.isnan(number(value))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        *((value, True) for value in (1, True, "1", 1.0, "True")),
        *((value, False) for value in (0, False, "0.0", "false")),
        *((value, None) for value in (2, "yes", None, "", 0.5, -1)),
    ],
)
def test_a_column_of_one_label_says_yes_or_no(value, said):
    assert is_yes(value) is said


@pytest.mark.parametrize(
    ("values", "are"),
    [
        (["0.0", "1.0"], True),
        ([0.0, 1.0, 2.0, 0.0], True),
        ([0, "1"], True),
        (["0.0", "0.0"], False),
        (["1.0", "2.0"], False),
        (["0.0", "1.0", "0.5"], False),
        (["0.0", "1.0", ""], False),
        ([], False),
    ],
)
def test_class_ids_however_they_are_written(values, are):
    assert are_class_ids(values) == are


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        ([[1, 0, 1], [0, 0, 0]], 3),
        ([[1.0, 0.0], [True, False]], 2),
        ([["1", "0"]], 2),
        ([[1], [0]], None),
        ([[1, 0], [1]], None),
        ([[1, 2], [0, 1]], None),
        ([["a", "b"]], None),
        ([[1, 0], "1;0"], None),
        ([[], []], None),
        ([], None),
        ([[1, 0, 0], [0, 1, 0], [1, 0]], 3),
        ([[1, 0, 0], [0, 1, 0], [0, 1, 2]], 3),
        ([[1, 0, 0], [0, 1, 0], [], None], None),
        ([[1, 0], [0, 0], [1]], 2),
        ([[1, 0], [0, 1], [1]], None),
    ],
)
def test_a_zero_or_one_for_each_class(values, classes):
    assert multi_hot_length(values) == classes


@pytest.mark.parametrize(
    ("texts", "lists"),
    [
        (["[1, 0]", "[0, 1]"], [[1, 0], [0, 1]]),
        (["['a', 'b']", "[]", ""], [["a", "b"], [], ""]),
        (['["a"]', None], [["a"], None]),
        (["[1 0 1]", "[0. 1. 0.]"], [["1", "0", "1"], ["0.", "1.", "0."]]),
        (["[1, 0]", "-1", -1, "[0, 1]"], [[1, 0], "-1", -1, [0, 1]]),
        (["['a']", "['b']", "c", None], [["a"], ["b"], "c", None]),
    ],
)
def test_lists_that_csv_has_as_text(texts, lists):
    assert parse_lists(texts) == lists


@pytest.mark.parametrize("values", [["[a]", "[b]"], ["[1]", "x"], [1, 2], ["", None], [[1]], ["[" * 5000 + "]" * 5000]])
def test_other_labels_are_as_they_were(values):
    assert parse_lists(values) == values


@pytest.mark.parametrize(
    ("values", "key"),
    [([1, 1.0, "1", "1.0", "+1"], "1"), ([True, "true", "TRUE"], "true"), (["a"], "a"), ([0.5, "0.5"], "0.5")],
)
def test_the_key_of_a_value_is_one_however_it_is_written(values, key):
    assert {as_key(value) for value in values} == {key}


def test_spellings():
    assert len({spelling(name) for name in ("Pos", "pos ", " POS", "ｐｏｓ")}) == 1
    assert spelling("caf\u00e9") == spelling("cafe\u0301")
    assert spelling("not  good") == spelling("not good") != spelling("notgood")
