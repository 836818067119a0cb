"""The cache: what is fed in parts is the whole row, in slots that keep their dtype; who sees whom."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jlora.errors import JloraError
from jlora.models.attention.visibility import sees
from jlora.models.kv_cache import (
    Slots,
    empty_cache,
    mark_tokens_valid,
    row_lengths,
    token_positions,
    update_slots,
    visible,
)
from jlora.models.registry import build
from tests.support.models import decoder_cases as cases
from tests.support.models.encoder_cases import difference


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 3e-2)])
def test_a_row_in_parts_is_the_whole_row(dtype, tolerance):
    """Padded on the left, in parts of 5, 4, 1, 1, ... tokens: one compile a length."""
    model_type, switches = cases.SWITCHES["gemma3"]
    model = build(cases.tiny_decoder(model_type, **switches))
    base, ids = cases.random_base(model), cases.random_tokens(model.config)["input_ids"][::2]
    mask = jnp.ones_like(ids).at[1, :3].set(0)
    whole = {"input_ids": ids, "attention_mask": mask, "position_ids": jnp.maximum(jnp.cumsum(mask, 1) - 1, 0)}
    expected = cases.quick(lambda base, batch: model.apply(base, batch, method="hidden"))(base, whole)
    extend = cases.quick(lambda base, batch, cache: model.apply(base, batch, cache, method="extend"))
    found, cache = [], model.empty_cache(2, 20, dtype)
    for start, end in [(0, 5), (5, 9), *((i, i + 1) for i in range(9, 14))]:
        hidden, cache = extend(base, {"input_ids": ids[:, start:end], "attention_mask": mask[:, start:end]}, cache)
        found.append(hidden)
    real = np.asarray(mask, bool)
    assert difference(jnp.concatenate(found, 1)[real], expected[real]) < tolerance
    assert extend._cache_size() == 3
    assert cache.keys.dtype == cache.values.dtype == dtype
    assert cache.length == 14
    np.testing.assert_array_equal(cache.valid, np.pad(real, ((0, 0), (0, 6))))


def test_a_token_sees_the_slots_before_it_that_hold_tokens():
    """Two tokens behind two others, the first of which is padding, in a cache of five slots."""
    cache = empty_cache(1, 1, 5, 1, 2, jnp.float32)
    cache = cache._replace(valid=cache.valid.at[0, 1].set(True), length=jnp.int32(2))
    batch = {"input_ids": jnp.zeros((1, 2), jnp.int32), "attention_mask": jnp.ones((1, 2), jnp.int32)}
    seen = sees(visible(batch, None, mark_tokens_valid(cache, batch), "auto"), jnp.arange(2), jnp.arange(5))
    np.testing.assert_array_equal(seen[0].T, [[0, 1, 1, 0, 0], [0, 1, 1, 1, 0]])
    np.testing.assert_array_equal(token_positions(batch, mark_tokens_valid(cache, batch)), [[1, 2]])


def test_positions_and_lengths():
    ids = jnp.zeros((2, 3), jnp.int32)
    batch = {"input_ids": ids, "attention_mask": jnp.ones_like(ids)}
    np.testing.assert_array_equal(token_positions(batch), [[0, 1, 2]] * 2)
    assert row_lengths(batch) == 3
    given = batch | {"position_ids": jnp.array([[0, 1, 0], [4, 5, 6]])}
    np.testing.assert_array_equal(token_positions(given), given["position_ids"])
    np.testing.assert_array_equal(row_lengths(given), [2, 7])
    np.testing.assert_array_equal(row_lengths(given, empty_cache(1, 2, 9, 1, 2, jnp.float32)), [9, 9])


def test_slots_are_written_from_the_start_on():
    old = Slots(jnp.zeros((1, 1, 2, 4), jnp.bfloat16), jnp.zeros((1, 1, 4, 2), jnp.bfloat16))
    new = jnp.ones((1, 2, 1, 2))
    keys, values, slots = jax.jit(update_slots)(old, new, 2 * new, jnp.int32(1))
    np.testing.assert_array_equal(keys[0, :, 0, 0], [0, 1, 1, 0])
    np.testing.assert_array_equal(values[0, :, 0, 0], [0, 2, 2, 0])
    assert keys.dtype == jnp.float32
    assert slots.keys.dtype == jnp.bfloat16
    assert update_slots(None, new, new, None) == (new, new, None)


@pytest.mark.parametrize("window", [0, -3])
def test_a_window_of_no_token_is_refused(window):
    batch = {"input_ids": jnp.zeros((1, 3), jnp.int32)}
    with pytest.raises(JloraError, match=f"sliding_window or window_size: expected 1 token or more, .* found {window}"):
        visible(batch, window, None, "auto")
