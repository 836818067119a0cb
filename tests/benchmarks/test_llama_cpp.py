"""The comparison with llama.cpp: what is counted as equal, and how far a token that differs is from a tie."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.llama_cpp.__main__ import Side, compare

PROMPT = np.array([1, 2])


def _side(*logits):
    """A greedy side of one prompt."""
    rows = np.array(logits, np.float32)
    return Side(PROMPT, rows.argmax(-1), rows)


def test_equal_tokens_and_the_logits_between_them():
    found = compare([_side([0, 1], [3, 1])], [_side([0, 1.25], [3, 1.5])])
    assert found == (2, 0.25, 0.5, 0)


def test_a_token_that_differs_ends_the_comparison_of_logits():
    ours, theirs = _side([0, 1], [3, 2.75], [9, 0]), _side([0, 1], [3, 3.125], [0, 9])
    assert compare([ours], [theirs]) == (1, 0, 0.375, 0.25)


def test_other_tokens_of_a_text_are_an_error():
    ours = _side([0, 1])
    with pytest.raises(RuntimeError, match="expected the same tokens of a text"):
        compare([ours], [ours._replace(prompt=np.array([1, 3]))])
