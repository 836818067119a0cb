"""Limits of what one request may ask for, and what an adapter may be called."""

from __future__ import annotations

import re

from starlette.types import Scope

from serve.config import ADAPTER_NAME, EXPECTED_NAME
from serve.http.errors import HttpError

MOST_CHOICES = 16
"""The largest `n`."""
MOST_ANSWERS = 128
"""Prompts times `n`, in one request."""
MOST_TOP_LOGPROBS = 20
MOST_STOPS = 16
LONGEST_STOP = 256
"""Characters."""
MOST_MESSAGES = 1000
MOST_TEXTS = 256
"""Rows of one request to classify."""
MOST_REPORTED = 500_000
"""The largest `top_logprobs` times the tokens of all answers of one request, which are kept until they are sent."""
CHARACTERS_OF_A_TOKEN = 32
"""Texts with more characters than this for each token of the context are not tokenized, which would take seconds."""
LARGEST_HEADERS = 16_384
"""The request line and all headers, in bytes."""


def require_small_headers(scope: Scope) -> None:
    """Raises HttpError 431 if the path and the headers are large; uvicorn's own limit is of unfinished ones only."""
    fields = [scope["path"].encode(), scope["query_string"], *(part for header in scope["headers"] for part in header)]
    size = sum(map(len, fields))
    if size > LARGEST_HEADERS:
        raise HttpError(431, f"expected a path and headers of at most {LARGEST_HEADERS:,} bytes, found {size:,}")


def require_adapter_name(name: str) -> str:
    """Returns the name; raises HttpError 400 unless it is one that an adapter may have.

    Names appear in file names, metrics and URLs, so nothing that means something there is allowed in one.
    """
    if not re.fullmatch(ADAPTER_NAME, name):
        raise HttpError(
            400,
            f"name: expected {EXPECTED_NAME}; found {name[:40]!r}{'...' if len(name) > 40 else ''}",
            param="name",
        )
    return name
