from __future__ import annotations

import pytest

from jlora.errors import ContextLengthError
from serve.http.engine_requests import make_requests
from serve.http.errors import HttpError
from serve.http.openai_schema import CompletionBody


def _make(prompts, *, max_tokens=5, top_logprobs=0, context=10, **body):
    return make_requests(
        CompletionBody(model="m", prompt="x", **body),
        prompts,
        adapter=None,
        max_tokens=max_tokens,
        top_logprobs=top_logprobs,
        context_length=context,
        stop_ids=frozenset({3}),
    )


def test_each_answer_has_a_seed_of_its_own_whatever_the_size_of_the_given_one():
    for seed in (0, 1, -1, 2**31, 2**63 - 1, -(2**63)):
        seeds = [request.seed for request in _make([[1], [2]], n=16, seed=seed)]
        assert len(set(seeds)) == 32
        assert seeds[0] == seed % 2**31
        assert all(0 <= found < 2**31 for found in seeds)
    assert _make([[1]])[0].seed != _make([[1]])[0].seed


def test_the_defaults_are_openais():
    [request] = _make([[1]])
    assert (request.temperature, request.top_p, request.max_tokens, request.adapter_from) == (1.0, 1.0, 5, 0)
    assert request.stop_ids == {3}


@pytest.mark.parametrize(("prompt", "max_tokens", "found"), [(5, 5, 5), (9, None, 1), (1, None, 9)])
def test_an_answer_fits_the_context(prompt, max_tokens, found):
    assert _make([[1] * prompt], max_tokens=max_tokens)[0].max_tokens == found


@pytest.mark.parametrize(("prompt", "max_tokens"), [(6, 5), (10, None), (1, 10**400)])
def test_one_that_does_not_is_refused(prompt, max_tokens):
    with pytest.raises(ContextLengthError, match=f"expected at most 10 tokens, found {prompt} of the prompt"):
        _make([[1] * prompt], max_tokens=max_tokens)


@pytest.mark.parametrize(("answers", "max_tokens"), [(16, 10_000), (1, None)])
def test_answers_with_too_many_likeliest_tokens_are_refused(answers, max_tokens):
    options = {"n": answers, "max_tokens": max_tokens, "context": 100_000}
    with pytest.raises(HttpError, match="at most 500,000 likeliest tokens in all answers together, found") as error:
        _make([[1]], top_logprobs=20, **options)
    assert error.value.status == 400
    assert len(_make([[1]], top_logprobs=1, **options)) == answers
