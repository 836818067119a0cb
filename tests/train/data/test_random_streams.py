import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from train.data.random_streams import permutation


@given(st.integers(0, 300), st.integers(0, 2**32), st.integers(0, 10))
def test_it_is_a_permutation_and_a_function_of_the_seed(count, seed, epoch):
    order = permutation(count, seed, epoch)
    assert sorted(order) == list(range(count))
    np.testing.assert_array_equal(order, permutation(count, seed, epoch))


def test_every_part_of_the_seed_counts():
    assert not np.array_equal(permutation(100, 0, 1), permutation(100, 1, 0))


def test_the_order_is_the_same_on_every_machine_and_version():
    np.testing.assert_array_equal(permutation(8, 0), [0, 3, 7, 5, 1, 2, 6, 4])
