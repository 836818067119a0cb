import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.training.lm_data import section
from train.data.table_files import Table
from train.lm.data.hold_out import are_few_long_texts, hold_out_ends
from train.lm.data.rows import TableRows
from train.lm.text.documents import Documents


def halves(text, fraction):
    beginning, end = hold_out_ends(Documents([text], None, [0], [4], "a.txt", "text"), fraction)
    assert beginning.where(0) == end.where(0) == "a.txt, data row 5"
    return beginning.texts[0], end.texts[0]


@given(st.text(alphabet="ab \n", max_size=300), st.sampled_from([0.1, 0.25, 0.5]))
def test_nothing_is_lost_and_the_end_has_about_its_share(text, fraction):
    beginning, end = halves(text, fraction)
    assert beginning + end == text
    assert -0.5 <= len(end) - fraction * len(text) <= fraction * len(text) / 10 + 1.5


@pytest.mark.parametrize(
    ("between", "expected"), [("x\n\nx y", "x y"), ("x\nx y", "x y"), ("xx y", "y"), ("xxxx", None)]
)
def test_the_cut_is_after_a_paragraph_else_a_line_else_a_word(between, expected):
    text = "b" * (900 - len(between)) + between + "e" * 100
    _, end = halves(text, 0.1)
    assert end == ("" if expected is None else expected) + "e" * 100


def rows(*texts, form="text"):
    return TableRows(Table("a", {"text": list(texts), "prompt": list(texts)}), form, np.arange(len(texts)))


def test_few_long_plain_texts_are_cut_and_others_are_not():
    config, long = section(max_length=8), "nine char"
    assert are_few_long_texts([rows(long), rows(long, long)], config)
    assert not are_few_long_texts([rows(*[long] * 10)], config)  # one of ten can be held out whole
    assert are_few_long_texts([rows(*[long] * 10)], section(max_length=8, validation_fraction=0.05))
    assert not are_few_long_texts([rows(long[:8])], config)
    assert not are_few_long_texts([rows(long, form="prompt_completion")], config)
    assert not are_few_long_texts([rows(long)], section(max_length=8, too_long="cut"))
