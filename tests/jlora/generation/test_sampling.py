"""Which tokens may be drawn: those that transformers' warpers leave."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.generation.sampling import Sampling, apply_temperature, checked_sampling, draw_tokens, filter_logits, nucleus


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.95), (0, 0.3), (0, 1e-6), (5, 1.0), (20, 0.5), (500, 0.9)])
def test_what_may_be_drawn_is_what_transformers_leaves(top_k, top_p):
    torch = pytest.importorskip("torch", reason="the oracle is transformers")
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(0).normal(0, 3, (7, 300)).astype("f")
    expected = torch.tensor(logits)
    expected = TopKLogitsWarper(top_k)(None, expected) if top_k else expected
    expected = TopPLogitsWarper(top_p)(None, expected).numpy()
    assert np.array_equal(filter_logits(jnp.asarray(logits), top_k=top_k, top_p=top_p), expected)


def test_one_token_is_kept_however_sure_the_model_is():
    sure = jnp.asarray([[0.0, 200.0, 0.0], [-jnp.inf, -jnp.inf, 1.0]])
    assert np.isfinite(filter_logits(sure, top_p=0.5)).sum(1).tolist() == [1, 1]


def test_the_likeliest_tokens_are_taken_without_a_key():
    logits = jnp.asarray([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert draw_tokens(logits, None, Sampling(temperature=5.0)).tolist() == [1, 0]
    assert draw_tokens(logits, jax.random.key(0), Sampling(top_k=1)).tolist() == [1, 0]


def test_equal_numbers_are_one_sampling():
    assert hash(checked_sampling(1, 0, 1)) == hash(Sampling())
    with pytest.raises(jlora.JloraError, match="top_p"):
        checked_sampling(1.0, 0, 2.0)


@pytest.mark.parametrize("vocabulary", [35, 261, 5000])
@pytest.mark.parametrize("temperature", [1e-4, 1e-10, 1e-30, 1e-40])
def test_the_smallest_temperatures_take_the_likeliest_token(temperature, vocabulary):
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 3, (4, vocabulary)), jnp.float32)
    draw = jax.jit(lambda logits, key: draw_tokens(logits, key, checked_sampling(temperature, 0, 0.9)))
    for seed in range(4):
        assert draw(logits, jax.random.key(seed)).tolist() == logits.argmax(-1).tolist()
    assert jnp.isfinite(apply_temperature(logits, 1.0)).all()


@pytest.mark.parametrize("top_p", [1e-6, 1e-37, 1e-40, 0.0])
def test_the_smallest_top_p_keeps_the_likeliest_token(top_p):
    logits = jnp.asarray([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    kept = jnp.isfinite(jax.jit(nucleus)(logits, jnp.full((2, 1), top_p, jnp.float32)))
    assert kept.tolist() == [[False, True, False], [True, False, False]]
