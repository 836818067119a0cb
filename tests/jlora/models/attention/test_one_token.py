"""The attention of one token is the full formula's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jlora.models.attention.attention import attention
from jlora.models.attention.visibility import Visibility

KEYS = jax.random.split(jax.random.key(0), 4)
VALID = jnp.array([[0, 0, 0, -1, -1], [-1, 0, 0, 0, -1]], jnp.int32)
OWN = jnp.zeros((2, 1), jnp.int32)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize(
    ("conditions", "options"),
    [
        ({}, {}),
        ({"query_segments": OWN, "key_segments": VALID, "start": jnp.int32(3), "causal": True}, {"softcap": 2.0}),
        ({"start": jnp.int32(4), "causal": True, "window": 2}, {"scale": 0.3}),
        ({"query_segments": OWN, "key_segments": jnp.full_like(VALID, -1)}, {}),
    ],
    ids=["all", "cache and cap", "window", "nothing is seen"],
)
@pytest.mark.parametrize("biased", [False, True])
def test_it_is_the_full_formula(conditions, options, biased, dtype, tolerance):
    shapes = [(2, 1, 6, 8), (2, 5, 2, 8), (2, 5, 2, 8)]
    inputs = [jax.random.normal(key, shape, dtype) for key, shape in zip(KEYS, shapes, strict=False)]
    bias = jax.random.normal(KEYS[3], (2, 6, 5)) if biased else None
    found, expected = (
        attention(*inputs, Visibility(**conditions, kernel=kernel), key_bias=bias, **options)
        for kernel in ("auto", "full")
    )
    assert found.dtype == dtype
    np.testing.assert_allclose(np.float32(found), np.float32(expected), atol=tolerance)
