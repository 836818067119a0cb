"""A generator that is held: the same tokens as the functions, and no more compilations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.generation import generator
from jlora.generation.generator import Generator, context_length
from jlora.generation.sampling import Sampling
from tests.support.adapters.lora_cases import random_adapter
from tests.support.models import decoder_cases as cases

IDS = [7, 8, 9]


@pytest.fixture(scope="module")
def held():
    """A generator of a tiny Llama with an adapter."""
    model = jlora.pretrained.load.build(cases.tiny_decoder("llama", max_position_embeddings=150))
    tokens = cases.random_tokens(model.config)
    base = jax.jit(model.init)(jax.random.key(0), tokens)
    return Generator(model, base, random_adapter(model.apply, base, tokens, targets=r".*v_proj"))


def test_its_tokens_are_those_of_the_functions(held):
    parts, key = (held.model, held.base, held.adapter), jax.random.key(3)
    sampling = Sampling(0.7, 20, 0.9)
    options = {"max_new_tokens": 5, "key": key, "stop_ids": [2]}
    expected = list(jlora.stream(*parts, IDS, temperature=0.7, top_k=20, top_p=0.9, **options))
    assert list(held.stream(IDS, sampling=sampling, **options)) == expected
    ids, mask = jnp.asarray([IDS]), jnp.ones((1, 3), jnp.int32)
    expected = jlora.generate(*parts, ids, mask, pad_id=0, temperature=0.7, top_k=20, top_p=0.9, **options)
    assert np.array_equal(held.generate(ids, mask, pad_id=0, sampling=sampling, **options), expected)


def test_generators_of_one_model_share_the_compiled_steps(held):
    list(held.stream(IDS, max_new_tokens=3))
    before = generator._extended._cache_size()
    other = Generator(held.model, held.base, jax.tree.map(lambda x: 2 * x, dict(held.adapter)))
    assert len(list(other.stream(IDS, max_new_tokens=3))) == 3
    assert generator._extended._cache_size() == before


def test_what_is_wrong_is_refused_before_the_first_token(held):
    assert context_length(held.model) == 150
    with pytest.raises(jlora.JloraError, match="one token at least"):
        held.stream([], max_new_tokens=3)
    with pytest.raises(jlora.JloraError, match="top_p"):
        held.stream(IDS, max_new_tokens=3, sampling=Sampling(top_p=2.0))
    with pytest.raises(jlora.JloraError, match="at most 150 tokens"):
        held.stream(IDS, max_new_tokens=150)
