import dataclasses

import numpy as np

from tests.support.training.lm_data import examples, rows
from train.lm.data.examples import Counts, join


def test_examples_are_taken_in_the_order_asked_for():
    found = examples(2, 3, 1, prompts=[1, 2, 0]).take(np.array([2, 0, 0]))
    assert rows(found) == [[5], [0, 1], [0, 1]]
    assert (found.prompts.tolist(), found.lengths.tolist(), len(found)) == ([0, 1, 1], [1, 2, 2], 3)
    assert found.learn.tolist() == [False, False, True, False, True]
    assert (found.ids.dtype, found.offsets.dtype, found.learn.dtype) == (np.int32, np.int64, bool)
    assert len(found.take(np.array([], np.int64))) == 0


def test_the_first_token_of_a_part_is_not_learnt_and_only_the_first_part_has_the_prompt():
    found = examples(2, 4, prompts=[0, 3]).parts(np.array([1, 1]), np.array([0, 2]), np.array([2, 2]))
    assert rows(found) == [[2, 3], [4, 5]]
    assert found.learn.tolist() == [False, True, False, True]
    assert found.prompts.tolist() == [2, 0]


def test_parts_are_joined_and_their_counts_added():
    one = dataclasses.replace(examples(2, 3, prompts=[1, 0]), counts=Counts(5, cut=1))
    two = dataclasses.replace(examples(4), counts=Counts(6, 1, 2))
    both = join([one, examples(), two])
    assert rows(both) == rows(one) + rows(two)
    assert both.learn.tolist() == [*one.learn.tolist(), *two.learn.tolist()]
    assert (both.prompts.tolist(), both.counts) == ([1, 0, 0], Counts(11, split=1, cut=3))
    assert rows(join([one])) == rows(one)
