import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.support.training.lm_data import examples
from train.lm.data.packing import best_fit, pack

SIZE = 30
some_lengths = st.lists(st.integers(2, SIZE), min_size=1, max_size=60).map(np.array)


@given(some_lengths)
def test_rows_hold_every_example_once_and_none_too_much(lengths):
    rows = best_fit(lengths, SIZE)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(lengths[row].sum() <= SIZE for row in rows)


@given(some_lengths)
def test_no_two_rows_would_fit_into_one_and_few_are_needed(lengths):
    sums = sorted(int(lengths[row].sum()) for row in best_fit(lengths, SIZE))
    assert len(sums) < 2 or sums[0] + sums[1] > SIZE
    assert len(sums) <= 11 / 9 * -(-lengths.sum() // SIZE) + 4  # the bound of best-fit decreasing


def test_the_least_room_is_left_over():
    assert best_fit(np.array([6, 8, 2, 5]), 10) == [[1, 2], [0], [3]]


@given(some_lengths)
def test_packing_is_a_permutation_of_the_examples(lengths):
    whole = examples(*lengths)
    packed = pack(whole, SIZE)
    starts = np.flatnonzero(packed.position_ids == 0)
    found = [part.tolist() for part in np.split(packed.ids, starts[1:])]
    assert sorted(found) == [part.tolist() for part in np.split(whole.ids, whole.offsets[1:-1])]
    assert packed.ids[packed.learn].size == whole.learn.sum()
    assert not packed.learn[starts].any()
    assert packed.lengths.sum() == len(packed.ids)
    assert np.isclose(packed.padding_share, 1 - lengths.sum() / (len(packed) * SIZE))
    for row in range(len(packed)):
        part = slice(packed.offsets[row], packed.offsets[row + 1])
        segments, positions = packed.segment_ids[part], packed.position_ids[part]
        assert segments[0] == 1
        begins = positions == 0
        assert segments.tolist() == np.cumsum(begins).tolist()
        assert (positions[~begins] == positions[np.flatnonzero(~begins) - 1] + 1).all()


def test_dtypes_and_full_rows():
    packed = pack(examples(4, 4), 4)
    assert [packed.segment_ids.tolist(), packed.position_ids.tolist()] == [[1] * 8, [0, 1, 2, 3] * 2]
    assert {values.dtype for values in (packed.ids, packed.segment_ids, packed.position_ids)} == {np.dtype(np.int32)}
    assert (len(packed), packed.size, packed.padding_share) == (2, 4, 0.0)
