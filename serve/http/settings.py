"""What the HTTP layer takes from the server's configuration."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class HttpSettings:
    """How the HTTP layer answers.

    Attributes:
      token: the bearer token of all routes of `/v1` and of `/metrics`; None asks for no token and answers requests to
        this machine's own names only, so that no page of another site can talk to the server through a browser.
      admin_token: the bearer token of `/admin`; None turns these routes off.
      adapter_folders: folders below which an adapter may be loaded from.
      stop_ids: tokens that end every answer, such as the tokenizer's end of text.
      largest_body: of a request, in bytes.
      body_seconds: how long a client may take to send its request's body.
    """

    token: str | None = None
    admin_token: str | None = None
    adapter_folders: tuple[Path, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    largest_body: int = 1_000_000
    body_seconds: float = 30.0
