"""Runs the application on a port, bounded against slow clients, until a signal ends it gracefully."""

from __future__ import annotations

import asyncio
import threading
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from serve.http.limits import LARGEST_HEADERS

_HEADER_SECONDS = 30.0
"""How long a client may take to send the headers of a request; a connection that only waits is closed, too."""
_IDLE_SECONDS = 15
"""How long a connection is kept after an answer."""
_WRITING_SECONDS = 5
"""How long clients may take to read what was answered before the end."""


class Server(uvicorn.Server):
    """A server that a signal ends gracefully: it takes no more requests, and answers finish or say that they were cut.

    A second signal ends it at once.
    """

    def __init__(self, app: Starlette, *, host: str, port: int, end_seconds: float, **options: Any) -> None:
        """`end_seconds`: how long running answers may take to finish."""
        self._app, self._end_seconds = app, end_seconds
        super().__init__(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                http=_PatientH11,
                ws="none",
                server_header=False,
                proxy_headers=False,
                h11_max_incomplete_event_size=LARGEST_HEADERS,
                timeout_keep_alive=_IDLE_SECONDS,
                timeout_graceful_shutdown=_WRITING_SECONDS,
                **options,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles a signal: the first begins the end, the second makes it immediate."""
        is_first = not self._app.state.ending
        super().handle_exit(sig, frame)
        self.should_exit, self.force_exit = not is_first, not is_first
        if is_first:
            self.begin_end()

    def begin_end(self) -> None:
        """Stops the engine in a thread, and then the server, while `/health` answers 503."""
        self._app.state.ending = True
        threading.Thread(target=self._end, daemon=True).start()

    def _end(self) -> None:
        try:
            self._app.state.engine.stop(self._end_seconds)
        finally:
            self.should_exit = True


class _PatientH11(H11Protocol):
    """uvicorn's HTTP/1.1, which by itself waits forever for the end of a request's headers."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._deadline is not None:
            self._deadline.cancel()

    def _wait_for_headers(self) -> None:
        """Starts the time when headers are awaited, and ends it when they are there."""
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        elif not is_answering and self._deadline is None:
            self._deadline = self.loop.call_later(_HEADER_SECONDS, self.transport.close)
