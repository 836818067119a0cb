import numpy as np
import pytest

from train.classify.data.splits import Split
from train.classify.data.tokens import Tokens
from train.classify.evaluate import logits_of, scores
from train.classify.loss import row_losses
from train.classify.model import Prepared

_LENGTHS = np.array([5, 2, 9, 3, 3, 8, 1])


def _split():
    ids = np.arange(1, 1 + _LENGTHS.sum(), dtype=np.int32)
    rows = Split(["x"] * 7, None, [0] * 7, list(range(7)), ["file"] * 7)
    return Prepared(rows, Tokens(ids, np.concatenate([[0], _LENGTHS.cumsum()]), None, 0), np.zeros(7, np.int32), 0)


def _sums(batch):
    """Logits that tell which tokens the mask lets through."""
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    return np.stack([(ids * mask).sum(1), mask.sum(1)], axis=1).astype(np.float32)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 16])
def test_logits_stand_in_the_order_of_the_rows(batch_size):
    split = _split()
    found = logits_of(_sums, split, (4, 8, 16), batch_size)
    sums = [split.tokens.ids[a:b].sum() for a, b in zip(split.tokens.offsets, split.tokens.offsets[1:], strict=False)]
    assert found.tolist() == [[float(total), float(length)] for total, length in zip(sums, _LENGTHS, strict=True)]


def test_batches_have_few_shapes():
    shapes = []

    def step(batch):
        shapes.append(batch.inputs["input_ids"].shape)
        return _sums(batch)

    logits_of(step, _split(), (4, 16), 3)
    assert set(shapes) == {(3, 4), (3, 16)}


def test_only_labelled_rows_count():
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [5.0, 0.0]], np.float32)
    labels = np.array([0, -1, 1], np.int32)
    found = scores("single_label_classification", logits, labels)
    kept = scores("single_label_classification", logits[[0, 2]], labels[[0, 2]])
    assert found == kept
    assert found["accuracy"] == 0.5
    expected = row_losses("single_label_classification", logits[[0, 2]], labels[[0, 2]]).mean()
    assert found["loss"] == pytest.approx(float(expected))


@pytest.mark.parametrize(
    ("problem_type", "labels"),
    [
        ("single_label_classification", np.full(3, -1, np.int32)),
        ("multi_label_classification", np.full((3, 2), np.nan, np.float32)),
    ],
)
def test_without_a_label_there_are_no_scores(problem_type, labels):
    assert scores(problem_type, np.zeros((3, 2), np.float32), labels) == {}


def test_a_check_ends_it_between_two_batches():
    checks = []

    def check():
        checks.append(None)
        if len(checks) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        logits_of(_sums, _split(), (16,), 2, check=check)
