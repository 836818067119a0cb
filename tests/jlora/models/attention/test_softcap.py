"""Scores lie between -cap and cap, and the slope is the derivative."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jlora.models.attention.softcap import cap_scores, cap_scores_and_slope

SCORES = jnp.linspace(-200, 200, 81)


@pytest.mark.parametrize("cap", [1.0, 50.0])
def test_scores_are_capped_and_the_slope_is_the_derivative(cap):
    capped, slope = cap_scores_and_slope(SCORES, cap)
    np.testing.assert_array_equal(capped, cap_scores(SCORES, cap))
    assert float(jnp.abs(capped).max()) <= cap
    expected = jax.vmap(jax.grad(lambda score: cap_scores(score, cap)))(SCORES)
    np.testing.assert_allclose(slope, expected, atol=1e-6)
    np.testing.assert_allclose(capped[40:42], SCORES[40:42], atol=0.02 * cap + 5 * (cap == 1))


def test_without_a_cap_scores_are_as_they_were():
    capped, slope = cap_scores_and_slope(SCORES, None)
    assert capped is SCORES
    assert slope is None
    assert cap_scores(SCORES, None) is SCORES
