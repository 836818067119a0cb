from __future__ import annotations

import openai
import pytest

from tests.support.serve.fake_engine import BASE, TOKENIZER, FakeEngine, answer_text
from tests.support.serve.running import run_server


@pytest.fixture(scope="module")
def engine():
    return FakeEngine()


@pytest.fixture(scope="module")
def client(engine):
    with run_server(engine) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="-", max_retries=0) as client:
        yield client


def _ask(client, **options):
    return client.completions.create(**{"model": "alice", "prompt": "Once", "temperature": 0} | options)


@pytest.mark.parametrize("prompt", ["Once", TOKENIZER("Once")["input_ids"]])
def test_a_prompt_is_text_or_ids_and_sixteen_tokens_are_the_default(client, engine, prompt):
    answer = _ask(client, prompt=prompt)
    whole = TOKENIZER(answer_text("alice", "Once"))["input_ids"]
    assert answer.choices[0].text == TOKENIZER.decode(whole[:16])
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 16
    assert (answer.object, answer.model) == ("text_completion", "alice")
    assert list(engine.submitted[-1].ids) == TOKENIZER("Once")["input_ids"]


@pytest.mark.parametrize(
    "prompts", [["One", "Three"], [TOKENIZER("One")["input_ids"], TOKENIZER("Three")["input_ids"]]]
)
def test_several_prompts_have_n_answers_each_in_their_order(client, prompts):
    answer = _ask(client, prompt=prompts, n=2, max_tokens=100, model=BASE)
    expected = [answer_text(None, prompt) for prompt in ("One", "One", "Three", "Three")]
    assert [(choice.index, choice.text) for choice in answer.choices] == list(enumerate(expected))
    assert answer.usage.prompt_tokens == len("OneThree")


def test_a_stream_has_the_same_text(client):
    chunks = list(_ask(client, max_tokens=100, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == answer_text("alice", "Once")
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.prompt_tokens == 4


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_the_older_form(client, stream):
    answer = _ask(client, logprobs=1, max_tokens=6, stream=stream)
    found = [chunk.choices[0].logprobs for chunk in answer] if stream else [answer.choices[0].logprobs]
    assert [token for part in found for token in part.tokens] == list("I am a")
    assert [offset for part in found for offset in part.text_offset] == [0, 1, 2, 3, 4, 5]
    assert next(top for part in found for top in part.top_logprobs) == {"I": -0.5}
    assert {value for part in found for value in part.token_logprobs} == {-0.5}


def test_no_tops_are_written_where_none_are_asked_for(client):
    assert _ask(client, logprobs=0, max_tokens=2).choices[0].logprobs.top_logprobs is None
    assert _ask(client, max_tokens=2).choices[0].logprobs is None


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"echo": True}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": ["a", 3]}, "prompt"),
        ({"prompt": [10**6]}, "prompt"),
        ({"prompt": [10**100]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": ["a"] * 9, "n": 16}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
    ],
)
def test_what_is_not_honoured_or_no_prompt_is_refused_by_name(client, engine, options, param):
    before = len(engine.submitted)
    with pytest.raises(openai.BadRequestError) as error:
        _ask(client, **options)
    assert error.value.param == param
    assert len(engine.submitted) == before


def test_a_prompt_past_the_context_is_refused(client):
    with pytest.raises(openai.BadRequestError) as error:
        _ask(client, prompt=["short", "x" * 1990])
    assert error.value.code == "context_length_exceeded"


def test_an_unknown_model_is_an_error(client):
    with pytest.raises(openai.NotFoundError, match="no adapter has the name 'bob'"):
        _ask(client, model="bob")
