import jax.numpy as jnp
import numpy as np
import pytest

from train.data.bucketing import PlannedBatch
from train.loop.evaluation import never, results

_PLAN = [PlannedBatch(8, np.array([row])) for row in range(4)]


def test_the_results_stand_in_the_order_of_the_batches_on_the_host():
    found = list(results(lambda planned: {"rows": jnp.asarray(planned.rows)}, _PLAN, never))
    assert [one["rows"].tolist() for one in found] == [[0], [1], [2], [3]]
    assert all(isinstance(one["rows"], np.ndarray) for one in found)


def test_one_batch_is_computed_while_the_next_is_made():
    begun = []
    found = results(lambda planned: begun.append(len(begun)), _PLAN, never)
    assert [(next(found), len(begun)) for _ in _PLAN] == [(None, 2), (None, 3), (None, 4), (None, 4)]


@pytest.mark.parametrize("after", range(4))
def test_a_check_that_raises_ends_it_before_the_next_batch(after):
    begun = []

    def check():
        if len(begun) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(results(begun.append, _PLAN, check))
    assert len(begun) == after


def test_no_batches_give_nothing():
    assert list(results(None, [], never)) == []
