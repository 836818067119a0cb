"""Who sees whom, for each pair of tokens, and for blocks of them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jlora.models.attention.visibility import Visibility, can_see, causal_visibility, mask_visibility, sees

PADDED = {"attention_mask": jnp.array([[1, 1, 1, 0]])}


def _pairs(visibility, queries=4, keys=4):
    """bool (queries, keys) of the first row."""
    seen = sees(visibility, jnp.arange(queries), jnp.arange(keys))
    return np.broadcast_to(np.asarray(seen[0]).T, (queries, keys))


@pytest.mark.parametrize(
    ("window", "segments", "expected"),
    [
        (None, None, [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]]),
        (2, None, [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0]]),
        (4, None, [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0]]),
        (None, [[1, 1, 2, 2]], [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]]),
    ],
)
def test_causal_rows(window, segments, expected):
    batch = PADDED if segments is None else PADDED | {"segment_ids": jnp.array(segments)}
    np.testing.assert_array_equal(_pairs(causal_visibility(batch, window, None, None, "auto")), expected)


def test_an_encoders_tokens_see_all_tokens():
    np.testing.assert_array_equal(_pairs(mask_visibility(PADDED["attention_mask"], "auto")), [[1, 1, 1, 0]] * 4)


def test_without_conditions_all_see_all():
    assert sees(Visibility(), jnp.arange(2), jnp.arange(3)) is None


@pytest.mark.parametrize("window", [None, 1, 3, 7])
def test_blocks_that_can_see_hold_a_pair_that_sees(window):
    visibility = Visibility(causal=True, window=window)
    pairs = _pairs(visibility, 12, 12)
    for query in range(0, 12, 4):
        for key in range(0, 12, 3):
            expected = pairs[query : query + 4, key : key + 3].any()
            assert can_see(visibility, query, 4, key, 3) == expected, (query, key)


def test_a_place_that_is_not_known_yet_can_see_all_blocks():
    assert can_see(Visibility(causal=True, start=jnp.int32(8)), 0, 4, 8, 4)
