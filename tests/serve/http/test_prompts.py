from __future__ import annotations

import asyncio

import pytest

from jlora.errors import ContextLengthError
from jlora.generation.chat import chat_ids
from serve.http.errors import HttpError
from serve.http.limits import CHARACTERS_OF_A_TOKEN
from serve.http.openai_schema import Message
from serve.http.prompts import Prompts
from tests.support.training.lm_data import TEMPLATE, byte_tokenizer

SLOW = TEMPLATE + "{% for i in range(200) %}{{ '' }}{% endfor %}"


def test_chats_at_the_same_time_are_not_mixed():
    tokenizer = byte_tokenizer(template=SLOW)
    prompts = Prompts(tokenizer, 100)
    chats = [[Message(role="user", content=f"{index}" * 50)] for index in range(40)]

    async def write_all():
        return await asyncio.gather(*(prompts.from_chat(chat) for chat in chats))

    found = asyncio.run(write_all())
    assert found == [chat_ids(tokenizer, [message.to_turn() for message in chat]) for chat in chats]
    prompts.close()


def test_texts_have_the_special_tokens_that_the_tokenizer_adds():
    tokenizer = byte_tokenizer(first=True)
    prompts = Prompts(tokenizer, 100)
    ids = asyncio.run(prompts.from_prompt("ab"))
    assert ids[0] == tokenizer.bos_token_id
    assert asyncio.run(prompts.from_prompt("")) == [tokenizer.bos_token_id]
    assert asyncio.run(prompts.from_prompt([1, 2])) == [1, 2]
    with pytest.raises(HttpError, match=r"^prompt: expected ids below 258"):
        asyncio.run(prompts.from_prompt([258]))


class _Counting:
    """A tokenizer that notes what it is given."""

    all_special_tokens = ()

    def __init__(self):
        self.seen = []

    def __call__(self, *texts, **options):
        self.seen.append(texts)
        return {"input_ids": [1]}


def test_a_text_far_longer_than_the_context_is_not_tokenized():
    tokenizer = _Counting()
    prompts, most = Prompts(tokenizer, 100), 100 * CHARACTERS_OF_A_TOKEN
    chat = [Message(role="user", content="x" * most), Message(role="user", content="y")]
    for ask, where in [
        (prompts.from_prompt("x" * (most + 1)), "prompt"),
        (prompts.from_rows([("x",), ("x" * most, "y")]), r"input\[1\]"),
        (prompts.from_chat(chat), "messages"),
    ]:
        with pytest.raises(ContextLengthError, match=f"^{where}: expected at most 3,200 characters.*found 3,201"):
            asyncio.run(ask)
    assert tokenizer.seen == []
    assert asyncio.run(prompts.from_prompt("x" * most)) == [1]


def test_a_request_of_many_rows_lets_others_pass():
    tokenizer = _Counting()
    prompts = Prompts(tokenizer, 100)

    async def ask_both():
        await asyncio.gather(prompts.from_rows([(f"{row}",) for row in range(50)]), prompts.from_prompt("other"))

    asyncio.run(ask_both())
    assert tokenizer.seen.index(("other",)) < 5
