import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jlora.errors import JloraError
from tests.support.training.lm_data import examples, rows
from train.lm.data.examples import Counts
from train.lm.data.length import fit
from train.lm.text.documents import Documents

some_lengths = st.lists(st.integers(1, 40), max_size=20)


def fitted(found, max_length, too_long):
    texts = [""] * len(found)
    return fit(found, max_length, too_long, Documents(texts, None, [], list(range(len(texts))), "a.txt", "text"))


@given(some_lengths, st.integers(2, 12))
def test_of_split_texts_every_token_but_the_first_is_learnt_once(lengths, max_length):
    whole = examples(*lengths)
    windows = fitted(whole, max_length, "split")
    assert windows.ids[windows.learn].tolist() == whole.ids[whole.learn].tolist()
    assert windows.learn.sum() == windows.lengths.sum() - len(windows)
    assert all(2 <= length <= max_length for length in windows.lengths)
    assert len(windows) == sum(-(-(length - 1) // (max_length - 1)) for length in lengths)
    long = sum(length > max_length for length in lengths)
    assert windows.counts == Counts(0, split=long, unlearnt=lengths.count(1))


@given(some_lengths, st.integers(2, 12))
def test_cut_and_dropped_rows_are_counted(lengths, max_length):
    whole = examples(*lengths)
    kept = [row for row in rows(whole) if len(row) > 1]
    cut, dropped = fitted(whole, max_length, "cut"), fitted(whole, max_length, "drop")
    long = sum(len(row) > max_length for row in kept)
    if kept:
        assert rows(cut) == [row[:max_length] for row in kept]
        assert [row for row in rows(dropped) if row] == [row for row in kept if len(row) <= max_length]
    assert cut.counts == Counts(cut=long, unlearnt=lengths.count(1))
    assert dropped.counts == Counts(dropped=long, unlearnt=lengths.count(1))


def test_a_row_that_is_too_long_is_named():
    with pytest.raises(JloraError) as error:
        fitted(examples(3, 4, 9, 5), 4, "error")
    assert str(error.value) == (
        "a.txt, data row 3: expected at most data.max_length=4 tokens; found 9 (2 of 4 rows are longer). "
        "data.too_long=split, cut or drop allows them"
    )
    assert rows(fitted(examples(3, 4), 4, "error")) == rows(examples(3, 4))


def test_examples_of_which_nothing_is_learnt_are_left_out():
    whole = examples(4, 4, 4, prompts=[1, 3, 3])
    whole.learn[:] = np.array([0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0], bool)
    found = fitted(whole, 3, "cut")
    assert (rows(found), found.counts) == ([[8, 9, 10]], Counts(cut=3, unlearnt=2))
    assert found.prompts.tolist() == [3]
    split = fitted(whole, 3, "split")
    assert (rows(split), split.prompts.tolist()) == ([[2, 3], [8, 9, 10]], [0, 3])
    assert split.counts == Counts(split=3, unlearnt=4)
