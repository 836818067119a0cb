"""HTTP/1.1 with bounds on what a client that is slow, silent or hostile may cost."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from serve.http.errors import HttpError, error_body
from serve.http.limits import LARGEST_HEADERS

_HEADER_SECONDS = 30.0
"""How long a client may take to send the headers of a request; a connection that only waits is closed, too."""
_UNREAD_SECONDS = 60.0
"""How long a client may leave what was answered unread."""
_LEAST_READ = 65_536
"""The bytes that a client must read in this time; one that reads fewer would keep an answer in memory for days."""


class _Reader(h11.Connection):
    """Reads requests whose bodies say their length.

    Bodies in chunks are refused. Chunks of a single byte cost a client six bytes each, and the server so much time that
    one such client would leave none for the others.

    Attributes:
      refusal: why the client's bytes are no request.
    """

    refusal: HttpError | None = None

    def next_event(self) -> Any:
        """Returns the next event; raises RemoteProtocolError for what is no request."""
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            self.refusal = HttpError(error.error_status_hint, f"expected a request of HTTP/1.1, found: {error}")
            raise
        if isinstance(event, h11.Request) and any(name == b"transfer-encoding" for name, _ in event.headers):
            self.refusal = HttpError(411, "expected a body with Content-Length, found one with Transfer-Encoding")
            raise h11.RemoteProtocolError(str(self.refusal), error_status_hint=self.refusal.status)
        return event


class _Timer:
    """A call that comes later unless it is cancelled."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: asyncio.TimerHandle | None = None

    @property
    def is_running(self) -> bool:
        return self._handle is not None

    def start(self, seconds: float, fn: Callable[..., Any], *args: Any) -> None:
        self._handle = self._loop.call_later(seconds, fn, *args)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1, which by itself waits forever for headers, and for clients to read their answers.

    Attributes:
      idle_since: when the connection began, or its last answer ended; by the loop's clock.
      is_cut: whether it was closed to make room for another one.
    """

    def __init__(self, *args: Any, most: int, **options: Any) -> None:
        """`most`: how many connections there may be."""
        super().__init__(*args, **options)
        self.conn: _Reader = _Reader(h11.SERVER, LARGEST_HEADERS)
        self.is_cut = False
        self.idle_since = self.loop.time()
        self._most = most
        self._headers_due, self._reading_due = _Timer(self.loop), _Timer(self.loop)

    @property
    def is_answering(self) -> bool:
        """Whether there is a request that has not been answered."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for its client: for a request, or for the rest of its body."""
        return not self.is_answering or self.cycle.more_body

    @property
    def _socket(self) -> Any:
        return self.transport.get_extra_info("socket")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # So that what a client has not read is seen here: the system itself would hold megabytes for it.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LEAST_READ)
        transport.set_write_buffer_limits(high=0)
        self._make_room()
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait_for_headers()

    def on_response_complete(self) -> None:
        self.idle_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading_due.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._headers_due.cancel()
        self._reading_due.cancel()

    def send_400_response(self, msg: str) -> None:
        """Refuses what is no request, as all errors are answered, and closes the connection."""
        refusal = self.conn.refusal or HttpError(400, msg)
        body = json.dumps(error_body(refusal)).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        head = h11.Response(status_code=refusal.status, headers=list(headers.items()))
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        self.transport.close()

    def drop(self) -> None:
        """Closes the connection at once; the system, too, keeps nothing that has not been read."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _make_room(self) -> None:
        """Closes the connection that has waited for its client for the longest time if there are too many."""
        if len(self.connections) <= self._most:
            return
        others = [each for each in self.connections if isinstance(each, Connection) and not each.is_cut]
        if len(others) > self._most:
            waiting = [each for each in others if each.is_waiting]  # this one is among them
            oldest = min(waiting, key=lambda each: each.idle_since)
            oldest.is_cut = True
            oldest.drop()

    def _wait_for_headers(self) -> None:
        """Starts the time when headers are awaited, and ends it when they are there."""
        if self.is_answering:
            self._headers_due.cancel()
        elif not self._headers_due.is_running:
            self._headers_due.start(_HEADER_SECONDS, self.transport.close)

    def _wait_for_reading(self) -> None:
        unread = self.transport.get_write_buffer_size()
        self._reading_due.start(_UNREAD_SECONDS, self._require_reading, unread)

    def _require_reading(self, unread: int) -> None:
        """Drops the connection, with what it has not read, unless it reads."""
        if unread - self.transport.get_write_buffer_size() < _LEAST_READ:
            self.drop()
        else:
            self._wait_for_reading()
