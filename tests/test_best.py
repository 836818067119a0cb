import pytest

from train.best import is_better


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
