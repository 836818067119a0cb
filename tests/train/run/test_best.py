import dataclasses

import pytest

from train.run.best import Best, is_better, judge


@pytest.mark.parametrize("metric", ["accuracy", "pearson", "loss", "perplexity", "mse"])
def test_better_is_a_strict_order(metric):
    low, high = 0.1, 0.9
    best, worst = (low, high) if metric in ("loss", "perplexity", "mse") else (high, low)
    assert is_better(metric, best, worst)
    assert not is_better(metric, worst, best)
    assert not is_better(metric, best, best)
    assert is_better(metric, worst, None)
    assert is_better(metric, worst, float("nan"))
    assert not is_better(metric, float("nan"), None)


@pytest.mark.parametrize("metric", ["accuracy", "perplexity"])
def test_of_equal_values_the_one_with_the_lower_loss_is_better(metric):
    assert is_better(metric, 0.5, 0.5, 0.1, 0.2)
    assert not is_better(metric, 0.5, 0.5, 0.2, 0.2)
    assert not is_better(metric, 0.5, 0.5, 0.3, 0.2)
    assert not is_better(metric, 0.5, 0.5, float("nan"), 0.2)
    assert not is_better(metric, 0.5, 0.5, 0.1, None)
    worse = 0.9 if metric == "perplexity" else 0.1
    assert not is_better(metric, worse, 0.5, 0.1, 0.2)


def test_judge_keeps_the_better_evaluation_and_counts_the_others():
    best = judge(Best("start"), "accuracy", {"accuracy": 0.5, "loss": 0.9}, 2, lambda: "second")
    assert (best.trainable, best.value, best.step, best.stale) == ("second", 0.5, 2, 0)
    worse = judge(best, "accuracy", {"accuracy": 0.4, "loss": 0.1}, 4, lambda: pytest.fail("copied"))
    assert worse == dataclasses.replace(best, stale=1)
    equal = judge(worse, "accuracy", {"accuracy": 0.5, "loss": 0.8}, 6, lambda: "sixth")
    assert (equal.trainable, equal.step, equal.stale) == ("sixth", 6, 2)
