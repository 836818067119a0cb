import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.training.lm_data import examples
from train.data.bucketing import PlannedBatch, plan_epoch
from train.lm.config import LMConfig
from train.lm.data.batches import make_batch, width_of_packed
from train.lm.data.packing import pack
from train.run.padded_lengths import lengths_of_run
from train.task.check_tokens import longest_batch

PAD = 77
some_lengths = st.lists(st.integers(2, 12), min_size=1, max_size=20)


def learnt_pairs(batch):
    """(context in its segment, target) of every learnt token, whatever the layout."""
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    segments = batch.inputs.get("segment_ids", mask)
    found = []
    for row, place in zip(*np.nonzero(batch.weights), strict=True):
        before = (segments[row] == segments[row, place]) & (np.arange(ids.shape[1]) <= place)
        found.append((ids[row][before].tolist(), int(batch.targets[row, place])))
    return sorted(found)


def masked(lengths, seed=0):
    """Examples of which a random half is learnt."""
    whole = examples(*lengths)
    whole.learn[:] &= np.random.default_rng(seed).random(len(whole.ids)) < 0.5
    return whole


@given(some_lengths)
def test_packed_rows_teach_what_the_single_examples_teach(lengths):
    whole = masked(lengths)
    packed = pack(whole, 12)
    count = len(lengths)
    single = make_batch(whole, PlannedBatch(12, np.arange(count)), count, PAD)
    together = make_batch(packed, PlannedBatch(12, np.arange(len(packed))), count, PAD)
    expected = [
        (whole.ids[start:place].tolist(), int(whole.ids[place]))
        for start, end in zip(whole.offsets, whole.offsets[1:], strict=False)
        for place in range(start, end)
        if whole.learn[place]
    ]
    assert learnt_pairs(single) == learnt_pairs(together) == sorted(expected)
    positions = together.inputs["position_ids"]
    for row, place in zip(*np.nonzero(together.inputs["attention_mask"]), strict=True):
        segment = together.inputs["segment_ids"][row]
        assert positions[row, place] == place - np.argmax(segment == segment[place])


def test_a_batch_by_hand():
    whole = examples(3, 2)
    batch = make_batch(whole, PlannedBatch(4, np.array([1, 0])), 3, PAD)
    assert batch.inputs["input_ids"].tolist() == [[3, 4, PAD, PAD], [0, 1, 2, PAD], [3, 4, PAD, PAD]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert batch.targets.tolist() == [[4, 0, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0]]
    assert batch.weights.tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert set(batch.inputs) == {"input_ids", "attention_mask"}
    assert {values.dtype for values in (*batch.inputs.values(), batch.targets)} == {np.dtype(np.int32)}
    assert batch.weights.dtype == np.float32


def _lengths(count, limit, *rows):
    """The lengths of these splits, whose longest is known before there is a model."""
    data, train = {"train": "t", "max_length": limit}, {"bucket_count": count}
    config = LMConfig(**{"model": "m", "output_dir": "o", "data": data, "train": train})
    splits = dict(zip(("train", "validation"), rows, strict=False))
    lengths, width = {name: part.lengths for name, part in splits.items()}, width_of_packed(splits)
    found = lengths_of_run(config, lengths, {}, width=width)
    assert found[-1] == (width or longest_batch(lengths.values(), limit))
    return found


def test_a_packed_batch_by_hand():
    batch = make_batch(pack(examples(3, 2), 6), PlannedBatch(6, np.array([0])), 1, PAD)
    assert {name: values.tolist() for name, values in batch.inputs.items()} == {
        "input_ids": [[0, 1, 2, 3, 4, PAD]],
        "attention_mask": [[1, 1, 1, 1, 1, 0]],
        "segment_ids": [[1, 1, 1, 2, 2, 0]],
        "position_ids": [[0, 1, 2, 0, 1, 0]],
    }
    assert batch.targets.tolist() == [[1, 2, 0, 4, 0, 0]]
    assert batch.weights.tolist() == [[1, 1, 0, 1, 0, 0]]


@given(some_lengths, st.integers(0, 3))
def test_an_epoch_teaches_every_learnt_token_once(lengths, epoch):
    for rows in (masked(lengths), pack(masked(lengths), 12)):
        plan = plan_epoch(rows.lengths, _lengths(3, 12, rows), 4, seed=1, epoch=epoch)
        targets = [batch.targets[batch.weights > 0] for batch in (make_batch(rows, p, 4, PAD) for p in plan)]
        assert sorted(np.concatenate(targets)) == sorted(rows.ids[rows.learn])


def test_packed_rows_have_one_length_and_others_few():
    one, two = examples(3, 9, 20, 20), examples(33)
    assert _lengths(4, 40, pack(one, 21), pack(two, 40)) == (40,)
    assert _lengths(2, 40, one, two) == (24, 40)
    assert _lengths(1, 37, one, two) == (37,)


def test_rows_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        make_batch(examples(3), PlannedBatch(2, np.array([0])), 1, PAD)
    with pytest.raises(ValueError, match="do not fit"):
        make_batch(examples(3, 3), PlannedBatch(4, np.array([0, 1])), 1, PAD)


@pytest.mark.parametrize("packed", [False, True])
def test_some_rows_of_a_batch_are_those_of_the_whole(packed):
    rows = pack(masked([3, 5, 4]), 12) if packed else masked([3, 5, 4])
    planned, places = PlannedBatch(12, np.arange(len(rows))), np.array([1, 3])
    some, whole = make_batch(rows, planned, 4, PAD, places), make_batch(rows, planned, 4, PAD)
    jax.tree.map(lambda part, all_: np.testing.assert_array_equal(part, all_[places]), some, whole)
