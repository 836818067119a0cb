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
    """Returns the token alone as text; a part of a character is the replacement character."""
    return tokenizer.decode([token], clean_up_tokenization_spaces=False)


def token_bytes(text: str) -> list[int] | None:
    """Returns the bytes of a token's text in UTF-8, or None where it is only a part of a character."""
    return None if "\ufffd" in text else list(text.encode())


def finite_logprob(logprob: float) -> float:
    """Returns the logprob, or a very low one if it is not finite."""
    return max(logprob, _LEAST) if math.isfinite(logprob) else _LEAST
