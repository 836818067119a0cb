import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from jlora.errors import JloraError
from train.classify import metrics

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def _random(problem_type, rows, k, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, k)).astype(np.float32)
    labels = {
        SINGLE: rng.integers(0, k, rows),
        MULTI: rng.integers(0, 2, (rows, k)),
        REGRESSION: rng.normal(size=rows).astype(np.float32),
    }[problem_type]
    return logits, labels


def test_binary_equals_sklearn():
    logits, labels = _random(SINGLE, 50, 2)
    predicted = logits.argmax(-1)
    assert metrics.compute(SINGLE, logits, labels) == pytest.approx(
        {
            "accuracy": sk.accuracy_score(labels, predicted),
            "f1": sk.f1_score(labels, predicted, pos_label=1),
            "mcc": sk.matthews_corrcoef(labels, predicted),
        }
    )


def test_many_classes_equal_sklearn():
    logits, labels = _random(SINGLE, 80, 5)
    predicted = logits.argmax(-1)
    assert metrics.compute(SINGLE, logits, labels) == pytest.approx(
        {
            "accuracy": sk.accuracy_score(labels, predicted),
            "f1_macro": sk.f1_score(labels, predicted, average="macro"),
            "mcc": sk.matthews_corrcoef(labels, predicted),
        }
    )


def test_multi_label_equals_sklearn_at_probability_one_half():
    logits, labels = _random(MULTI, 60, 3)
    predicted = metrics.probabilities(MULTI, logits) > 0.5
    assert metrics.compute(MULTI, logits, labels) == pytest.approx(
        {
            "f1_micro": sk.f1_score(labels, predicted, average="micro"),
            "f1_macro": sk.f1_score(labels, predicted, average="macro"),
            "accuracy": sk.accuracy_score(labels, predicted),
        }
    )


def test_regression_equals_scipy():
    logits, labels = _random(REGRESSION, 40, 1)
    predicted = logits[:, 0]
    assert metrics.compute(REGRESSION, logits, labels) == pytest.approx(
        {
            "pearson": stats.pearsonr(predicted, labels).statistic,
            "spearman": stats.spearmanr(predicted, labels).statistic,
            "mse": np.mean((predicted - labels) ** 2),
            "mae": np.mean(np.abs(predicted - labels)),
        },
        rel=1e-5,
    )


@pytest.mark.parametrize(("problem_type", "k"), [(SINGLE, 2), (SINGLE, 4), (MULTI, 3), (REGRESSION, 1)])
def test_names_are_those_that_compute_returns_and_start_with_the_primary(problem_type, k):
    listed = metrics.metric_names(problem_type, k)
    assert listed == list(metrics.compute(problem_type, *_random(problem_type, 10, k)))
    assert listed[0] == metrics.primary(problem_type)
    for name in [*listed, "loss"]:
        metrics.require_metric(name, problem_type, k)


@pytest.mark.parametrize(
    ("problem_type", "logits", "labels", "undefined"),
    [
        (SINGLE, [[1, 0]] * 3, [0, 0, 0], ["f1", "mcc"]),
        (SINGLE, [[0, 1]] * 3, [0, 1, 0], ["mcc"]),
        (MULTI, [[-1, -1]] * 3, [[0, 0]] * 3, ["f1_micro", "f1_macro"]),
        (REGRESSION, [[2.0]] * 3, [1.0, 2.0, 3.0], ["pearson", "spearman"]),
        (REGRESSION, [[1.0], [2.0]], [1.0, 1.0], ["pearson", "spearman"]),
        (REGRESSION, [[2.0]], [1.0], ["pearson", "spearman"]),
    ],
)
def test_undefined_is_zero_without_a_warning(problem_type, logits, labels, undefined):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = metrics.compute(problem_type, np.array(logits, np.float32), labels)
    assert {name: values[name] for name in undefined} == dict.fromkeys(undefined, 0.0)
    assert np.isfinite(list(values.values())).all()


def test_correlation_of_shifted_and_scaled_predictions_is_one():
    labels = np.arange(10.0)
    values = metrics.compute(REGRESSION, (3 * labels + 1)[:, None], labels)
    assert values["pearson"] == pytest.approx(1)
    assert values["spearman"] == pytest.approx(1)


def test_probabilities():
    logits, _ = _random(SINGLE, 20, 3)
    single = metrics.probabilities(SINGLE, logits)
    np.testing.assert_allclose(single.sum(-1), 1, rtol=1e-6)
    assert (single.argmax(-1) == logits.argmax(-1)).all()
    assert single.dtype == np.float32
    np.testing.assert_allclose(metrics.probabilities(MULTI, logits), 1 / (1 + np.exp(-logits)), rtol=1e-5)
    np.testing.assert_array_equal(metrics.probabilities(REGRESSION, logits), logits)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.require_metric("acuracy", SINGLE, 2), ["train.metric", "nearest: accuracy"]),
        (lambda: metrics.require_metric("f1", SINGLE, 3), ["f1_macro"]),
        (lambda: metrics.primary("regresion"), ["nearest: regression"]),
        (lambda: metrics.metric_names("multi_label", 3), ["nearest: multi_label_classification"]),
        (lambda: metrics.probabilities("softmax", [[1.0]]), ["softmax"]),
        (lambda: metrics.compute(SINGLE, [[0.0, 1.0]], [2]), ["row 0", "label 2", "0..1"]),
        (lambda: metrics.compute(SINGLE, [[0.0, 1.0]] * 2, [1, -1]), ["row 1", "label -1"]),
        (lambda: metrics.compute(SINGLE, np.zeros((0, 2)), []), ["at least one row"]),
        (lambda: metrics.compute(SINGLE, [[0.0, 1.0]], [1, 0]), ["(1,)", "(2,)"]),
        (lambda: metrics.compute(REGRESSION, [[0.0, 1.0]], [1.0]), ["one output"]),
        (lambda: metrics.compute(MULTI, [[0.0, 1.0]], [[0, 2]]), ["row 0", "0..1"]),
        (lambda: metrics.compute(SINGLE, [[0.0, np.nan]], [1]), ["row 0", "finite"]),
    ],
)
def test_errors_name_what_was_found_and_expected(call, words):
    with pytest.raises(JloraError) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value
