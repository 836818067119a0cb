import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.classify.data.batches import make_batch
from train.classify.data.tokens import Tokens
from train.data.bucketing import PlannedBatch, bucket_lengths, plan_epoch

some_lengths = st.lists(st.integers(1, 60), min_size=1, max_size=120).map(np.array)


def _tokens(lengths, typed=True):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.arange(1, offsets[-1] + 1, dtype=np.int32)
    return Tokens(ids, offsets, ids % 2 if typed else None, cut=0)


@given(some_lengths, st.integers(1, 9), st.booleans())
def test_batches_give_every_token_back(lengths, batch_size, typed):
    tokens, labels = _tokens(lengths, typed), np.arange(len(lengths), dtype=np.float32)
    seen = {}
    for planned in plan_epoch(lengths, bucket_lengths(lengths, 4), batch_size, 0, 0):
        batch = make_batch(tokens, labels, planned, batch_size, pad_id=-7)
        shape = (batch_size, planned.length)
        assert all(array.shape == shape and array.dtype == np.int32 for array in batch.inputs.values())
        assert ("token_type_ids" in batch.inputs) is typed
        assert (batch.weights.dtype, batch.rows.dtype) == (np.float32, np.int32)
        np.testing.assert_array_equal(batch.weights, batch.rows >= 0)
        np.testing.assert_array_equal(batch.inputs["input_ids"] == -7, batch.inputs["attention_mask"] == 0)
        assert batch.inputs["attention_mask"].sum(axis=1).min() > 0
        for i in np.flatnonzero(batch.weights):
            real = batch.inputs["attention_mask"][i] == 1
            seen[batch.rows[i]] = batch.inputs["input_ids"][i][real]
            assert batch.labels[i] == batch.rows[i]
            if typed:
                np.testing.assert_array_equal(
                    batch.inputs["token_type_ids"][i],
                    np.where(real, np.arange(len(real)) + tokens.offsets[batch.rows[i]] + 1, 0) % 2,
                )
    np.testing.assert_array_equal(np.concatenate([seen[row] for row in range(len(lengths))]), tokens.ids)


def test_filler_rows_are_copies_of_weight_nothing():
    batch = make_batch(_tokens([3, 5]), np.eye(2, dtype=np.float32), PlannedBatch(8, np.array([1])), 3, pad_id=0)
    assert batch.weights.tolist() == [1, 0, 0]
    assert batch.rows.tolist() == [1, -1, -1]
    assert batch.labels.tolist() == [[0, 1]] * 3
    assert (batch.inputs["input_ids"] == batch.inputs["input_ids"][0]).all()


def test_the_first_row_fills_a_batch_up():
    batch = make_batch(_tokens([3, 5]), np.arange(2), PlannedBatch(8, np.array([1, 0])), 3, pad_id=0)
    assert batch.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("planned", [PlannedBatch(4, np.array([1])), PlannedBatch(8, np.array([0, 1, 0]))])
def test_a_batch_that_does_not_fit_is_refused(planned):
    with pytest.raises(ValueError, match="do not fit"):
        make_batch(_tokens([3, 5]), np.zeros(2), planned, 2, pad_id=0)


def test_some_rows_of_a_batch_are_those_of_the_whole():
    tokens, planned, places = _tokens(np.array([3, 5, 4])), PlannedBatch(8, np.array([2, 0, 1])), np.array([1, 3])
    some, whole = (make_batch(tokens, np.arange(3), planned, 4, 0, *more) for more in ([places], []))
    jax.tree.map(lambda part, all_: np.testing.assert_array_equal(part, all_[places]), some, whole)
