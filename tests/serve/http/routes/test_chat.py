"""OpenAI's own client against a running server."""

from __future__ import annotations

import openai
import pytest

from jlora.generation.chat import chat_ids
from tests.support.serve.fake_engine import BASE, TOKENIZER, FakeEngine, answer_text
from tests.support.serve.running import run_server

HELLO = [{"role": "user", "content": "Hello ☕"}]


@pytest.fixture(scope="module")
def engine():
    return FakeEngine()


@pytest.fixture(scope="module")
def client(engine):
    with (
        run_server(engine) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def _expected(adapter, messages=HELLO):
    return answer_text(adapter, TOKENIZER.decode(chat_ids(TOKENIZER, messages)))


@pytest.mark.parametrize("model", [BASE, "alice"])
def test_a_chat_is_answered_by_the_model_that_was_asked(client, model):
    answer = client.chat.completions.create(model=model, messages=HELLO, temperature=0)
    adapter = None if model == BASE else model
    assert answer.choices[0].message.content == _expected(adapter)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == model
    assert answer.usage.prompt_tokens == len(chat_ids(TOKENIZER, HELLO))
    assert answer.usage.completion_tokens == len(TOKENIZER(_expected(adapter))["input_ids"])


def test_a_stream_has_the_same_text_in_pieces_and_ends_with_the_usage(client):
    stream = client.chat.completions.create(
        model="alice", messages=HELLO, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    assert "".join(text) == _expected("alice")
    assert len(text) > 20
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(TOKENIZER(_expected("alice"))["input_ids"])
