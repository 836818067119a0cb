from __future__ import annotations

import asyncio

import pytest

from jlora.generation.chat import chat_ids
from serve.http.errors import HttpError
from serve.http.openai_schema import Message
from serve.http.prompts import Prompts
from tests.support.training.lm_data import TEMPLATE, byte_tokenizer

SLOW = TEMPLATE + "{% for i in range(200) %}{{ '' }}{% endfor %}"


def test_chats_at_the_same_time_are_not_mixed():
    tokenizer = byte_tokenizer(template=SLOW)
    prompts = Prompts(tokenizer)
    chats = [[Message(role="user", content=f"{index}" * 50)] for index in range(40)]

    async def write_all():
        return await asyncio.gather(*(prompts.from_chat(chat) for chat in chats))

    found = asyncio.run(write_all())
    assert found == [chat_ids(tokenizer, [message.to_turn() for message in chat]) for chat in chats]
    prompts.close()


def test_texts_have_the_special_tokens_that_the_tokenizer_adds():
    tokenizer = byte_tokenizer(first=True)
    prompts = Prompts(tokenizer)
    ids = asyncio.run(prompts.from_prompt("ab"))
    assert ids[0] == tokenizer.bos_token_id
    assert asyncio.run(prompts.from_prompt("")) == [tokenizer.bos_token_id]
    assert asyncio.run(prompts.from_prompt([1, 2])) == [1, 2]
    with pytest.raises(HttpError, match=r"^prompt: expected ids below 258"):
        asyncio.run(prompts.from_prompt([258]))
