import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.bucketing import bucket_lengths, padding_share, plan_epoch, plan_evaluation

SST2 = Path(__file__).parents[4] / "shared" / "data" / "sst2" / "train.tsv"
lengths_of_rows = st.lists(st.integers(1, 60), max_size=120).map(np.array)
some_lengths = st.lists(st.integers(1, 60), min_size=1, max_size=120).map(np.array)


def _padded(lengths, buckets):
    return sum(min(bucket for bucket in buckets if bucket >= length) for length in lengths)


@given(some_lengths, st.integers(1, 6))
def test_buckets_are_few_ascending_multiples_that_hold_every_row(lengths, count):
    buckets = bucket_lengths(lengths, count)
    assert 1 <= len(buckets) <= count
    assert list(buckets) == sorted(set(buckets))
    assert all(bucket % 8 == 0 for bucket in buckets)
    assert lengths.max() <= buckets[-1] < lengths.max() + 8


@settings(max_examples=50, deadline=None)
@given(some_lengths, st.integers(1, 4))
def test_no_other_buckets_pad_less(lengths, count):
    top = math.ceil(lengths.max() / 8) * 8
    choices = [c for k in range(count) for c in itertools.combinations(range(8, top, 8), k)]
    fewest = min(_padded(lengths, (*choice, top)) for choice in choices)
    assert _padded(lengths, bucket_lengths(lengths, count)) == fewest


@given(some_lengths)
def test_no_bucket_is_above_the_limit(lengths):
    assert bucket_lengths(lengths, 6, limit=int(lengths.max()))[-1] == lengths.max()


def test_no_rows_need_no_buckets():
    assert bucket_lengths(np.array([], np.int64), 6) == ()
    assert plan_epoch(np.array([], np.int64), (), 4, seed=0, epoch=0) == []
    assert plan_evaluation(np.array([], np.int64), (), 4) == []


@given(some_lengths, st.integers(1, 9), st.integers(0, 2**31), st.integers(0, 9))
def test_an_epoch_holds_every_row_once_in_full_batches(lengths, batch_size, seed, epoch):
    buckets = bucket_lengths(lengths, 4)
    plan = plan_epoch(lengths, buckets, batch_size, seed, epoch)
    assert sorted(np.concatenate([batch.rows for batch in plan])) == list(range(len(lengths)))
    assert len(plan) == math.ceil(len(lengths) / batch_size)
    assert all(len(batch.rows) == batch_size for batch in plan[:-1])
    for batch in plan:
        assert batch.length in buckets
        assert lengths[batch.rows].max() <= batch.length
    again = plan_epoch(lengths, buckets, batch_size, seed, epoch)
    assert all(np.array_equal(a.rows, b.rows) and a.length == b.length for a, b in zip(plan, again, strict=True))


def test_rows_and_batches_are_shuffled_anew_each_epoch_and_seed():
    lengths = np.arange(1, 401) % 50 + 1
    buckets = bucket_lengths(lengths, 4)
    plans = [plan_epoch(lengths, buckets, 8, *key) for key in [(0, 0), (0, 1), (1, 0)]]
    orders = {tuple(np.concatenate([batch.rows for batch in plan])) for plan in plans}
    lengths_in_order = {tuple(batch.length for batch in plan) for plan in plans}
    assert len(orders) == len(lengths_in_order) == 3
    assert [batch.length for batch in plans[0]] != sorted(batch.length for batch in plans[0])


@given(lengths_of_rows.filter(len), st.integers(1, 9))
def test_evaluation_goes_from_short_to_long(lengths, batch_size):
    plan = plan_evaluation(lengths, bucket_lengths(lengths, 4), batch_size)
    order = np.concatenate([batch.rows for batch in plan])
    assert sorted(order) == list(range(len(lengths)))
    assert (np.diff(lengths[order]) >= 0).all()
    assert all(len(batch.rows) == batch_size for batch in plan[:-1])
    assert all(lengths[batch.rows].max() <= batch.length for batch in plan)


@pytest.mark.parametrize("plan", [lambda n, b: plan_epoch(n, b, 2, 0, 0), lambda n, b: plan_evaluation(n, b, 2)])
@pytest.mark.parametrize("buckets", [(8,), ()])
def test_a_row_beyond_the_buckets_is_not_lost_silently(plan, buckets):
    with pytest.raises(ValueError, match="longer than every bucket"):
        plan(np.array([3, 9]), buckets)


def test_the_share_of_padding():
    lengths = np.array([8, 4, 6])
    plan = plan_evaluation(lengths, (8,), 2)
    assert padding_share(plan, lengths, 2) == pytest.approx(1 - 18 / 32)
    assert padding_share([], lengths[:0], 2) == 0


@pytest.mark.skipif(not SST2.is_file(), reason="needs ../shared/data")
def test_on_sst2_six_buckets_waste_little():
    words = np.array([len(line.split()) + 2 for line in SST2.read_text().splitlines()[1:]])
    plan = plan_epoch(words, bucket_lengths(words, 6), 32, seed=0, epoch=0)
    assert padding_share(plan, words, 32) < 0.18
