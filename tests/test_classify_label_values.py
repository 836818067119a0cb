import math

import pytest

from train.classify.label_values import label_kind, whole_number


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
    ],
)
def test_kinds_of_labels_and_the_whole_numbers_among_them(value, kind, number):
    assert label_kind(value) == kind
    assert whole_number(value) == number
