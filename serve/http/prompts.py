"""Turns what a request says into token ids, in one thread apart from the loop that answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from jlora.errors import ContextLengthError, JloraError
from jlora.generation.chat import chat_ids
from serve.http.errors import HttpError
from serve.http.limits import CHARACTERS_OF_A_TOKEN
from serve.http.openai_schema import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ResultT = TypeVar("ResultT")


class TokenRow(NamedTuple):
    """The ids of one row, and their token types: 1 for the second text of a pair, where the model knows types."""

    ids: list[int]
    types: list[int]


class Prompts:
    """The tokenizer, for one request at a time.

    A chat template keeps the text that it writes in an environment of its own, which two threads must not share.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context_length: int) -> None:
        self.tokenizer = tokenizer
        self._longest = context_length * CHARACTERS_OF_A_TOKEN
        self._special = [token for token in map(str, tokenizer.all_special_tokens) if token]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prompts")

    async def from_chat(self, messages: Sequence[Message]) -> list[int]:
        """Returns a chat's ids, up to where the assistant's turn begins.

        Raises:
          ContextLengthError: the chat is far longer than the context.
          HttpError: 400 where a message holds a special token, with which it could pass as several turns, or where the
            template fails.
        """
        turns = [message.to_turn() for message in messages]
        self._require_short("messages", [turn["content"] for turn in turns])
        for index, turn in enumerate(turns):
            found = next((token for token in self._special if token in turn["content"]), None)
            if found is not None:
                where = f"messages[{index}].content"
                raise HttpError(400, f"{where}: expected no special token, found {found!r}", param=where)
        try:
            return await self._run(lambda: chat_ids(self.tokenizer, turns))
        except JloraError as error:
            raise HttpError(400, str(error), param="messages") from None

    async def from_prompt(self, prompt: str | list[int]) -> list[int]:
        """Returns the ids of a prompt that is text or ids.

        Raises:
          ContextLengthError: the text is far longer than the context.
          HttpError: 400 for an id that the vocabulary does not have, and for no ids at all.
        """
        if isinstance(prompt, str):
            self._require_short("prompt", [prompt])
            ids = (await self._encode((prompt,))).ids
        else:
            ids, size = prompt, len(self.tokenizer)
            if max(ids) >= size:
                message = f"prompt: expected ids below {size}, the size of the vocabulary, found {str(max(ids))[:40]}"
                raise HttpError(400, message, param="prompt")
        if not ids:
            raise HttpError(400, "prompt: expected at least one token, found none", param="prompt")
        return ids

    async def from_rows(self, rows: Sequence[tuple[str, ...]]) -> list[TokenRow]:
        """Returns the tokens of rows of one or two texts, with the special tokens that the tokenizer adds.

        Raises:
          ContextLengthError: a row is far longer than the context.
        """
        for index, row in enumerate(rows):
            self._require_short(f"input[{index}]", row)
        return [await self._encode(row) for row in rows]  # one by one, so that other requests get their turn

    async def _encode(self, row: tuple[str, ...]) -> TokenRow:
        found = await self._run(lambda: self.tokenizer(*row))
        return TokenRow(found["input_ids"], found.get("token_type_ids", [0] * len(found["input_ids"])))

    def _require_short(self, where: str, texts: Sequence[str]) -> None:
        length = sum(map(len, texts))
        if length > self._longest:
            raise ContextLengthError(
                f"{where}: expected at most {self._longest:,} characters, more than the context has room for, found"
                f" {length:,}"
            )

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, function: Callable[[], ResultT]) -> ResultT:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)
