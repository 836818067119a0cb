"""Single tokens and their probabilities as JSON can hold them."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LEAST = -9999.0
"""What OpenAI writes for a probability of zero, as JSON has no infinity."""


@functools.lru_cache(1 << 17)  # an answer with its likeliest tokens has twenty times as many as the text
def token_text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """Returns the token as text, as it follows other text; a part of a character is the replacement character."""
    before = _some_token(tokenizer)
    known = tokenizer.decode(before, clean_up_tokenization_spaces=False)
    return tokenizer.decode([*before, token], clean_up_tokenization_spaces=False).removeprefix(known)


@functools.lru_cache
def _some_token(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the ids of a letter: some tokenizers leave out the space before a token that nothing precedes."""
    return tokenizer.encode("a", add_special_tokens=False)


def token_bytes(text: str) -> list[int] | None:
    """Returns the bytes of a token's text in UTF-8, or None where it is only a part of a character."""
    return None if "\ufffd" in text else list(text.encode())


def finite_logprob(logprob: float) -> float:
    """Returns the logprob, or a very low one if it is not finite."""
    return max(logprob, _LEAST) if math.isfinite(logprob) else _LEAST
