from itertools import combinations

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data.random_streams import Stream, permutation, stream_key

SEEDS = st.integers(0, 2**64)


@given(st.integers(0, 300), st.sampled_from(Stream), SEEDS, st.integers(0, 10))
def test_it_is_a_permutation_and_a_function_of_its_arguments(count, stream, seed, epoch):
    order = permutation(count, stream, seed, epoch)
    assert sorted(order) == list(range(count))
    np.testing.assert_array_equal(order, permutation(count, stream, seed, epoch))


@given(st.lists(st.tuples(st.sampled_from(Stream), SEEDS, st.lists(st.integers(0, 9), max_size=2)), min_size=2))
def test_no_two_draws_have_one_order(draws):
    different = {(stream, seed, tuple(part)) for stream, seed, part in draws}
    orders = [tuple(permutation(100, stream, seed, *part)) for stream, seed, part in different]
    assert len(set(orders)) == len(orders)


@pytest.mark.parametrize("seed", [0, 1, 7, 2**32 - 1, 2**32])
def test_a_stream_without_parts_is_not_its_part_0_nor_a_part_of_another(seed):
    parts = [(), (0,), (0, 0), (1,), (1, 0), (4,), (5,)]
    orders = {tuple(permutation(100, stream, seed, *part)) for stream in Stream for part in parts}
    assert len(orders) == len(Stream) * len(parts)


def test_the_order_is_the_same_on_every_machine_and_version():
    np.testing.assert_array_equal(permutation(8, Stream.EPOCH_ROWS, 0, 0), [4, 6, 3, 5, 2, 1, 0, 7])


def test_no_two_streams_share_a_key_nor_its_first_children():
    """Children too: `split(key)[1]` is `fold_in(key, 1)`."""
    keys = [stream_key(0, stream) for stream in Stream]
    family = [key for parent in keys for key in (parent, *jax.random.split(parent, 16))] + [jax.random.key(0)]
    for one, other in combinations([tuple(jax.random.key_data(key).tolist()) for key in family], 2):
        assert one != other
