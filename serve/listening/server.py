"""Runs the application on a port, bounded against slow clients, until a signal ends it gracefully."""

from __future__ import annotations

import functools
import logging
import os
import socket
import threading
from types import FrameType
from typing import Any, cast

import uvicorn
from starlette.applications import Starlette

from jlora.errors import JloraError
from serve.listening.connection import Connection

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 15
"""How long a connection is kept after an answer."""
_WRITING_SECONDS = 5
"""How long clients may take to read what was answered before the end."""


def bind(host: str, port: int) -> socket.socket:
    """Takes an address, at which nobody is answered until a server listens there; the port 0 takes a free one.

    Raises:
      JloraError: the address is in use, or is none of this machine's.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if os.name == "posix":  # elsewhere this would let two servers have one address
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        found = error.strerror or str(error)
        raise JloraError(
            f"host, port: expected a free address of this machine, found {host!r}, {port}: {found}"
        ) from error
    return listener


class Server(uvicorn.Server):
    """A server that a signal ends gracefully: it takes no more requests, and answers finish or say that they were cut.

    A second signal ends it at once.
    """

    def __init__(
        self, app: Starlette, listener: socket.socket, *, end_seconds: float, most_connections: int, **options: Any
    ) -> None:
        """Makes a server that has not been started.

        Args:
          listener: where clients connect, of `bind`.
          end_seconds: how long running answers may take to finish.
          most_connections: how many connections there may be; of more, those that wait for their client are closed.
        """
        self._app, self._listener, self._end_seconds = app, listener, end_seconds
        super().__init__(
            uvicorn.Config(
                app,
                http=cast(Any, functools.partial(Connection, most=most_connections)),
                ws="none",
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_IDLE_SECONDS,
                timeout_graceful_shutdown=_WRITING_SECONDS,
                **options,
            )
        )

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Answers until a signal, or `begin_end`, ends it; then it returns."""
        super().run(sockets or [self._listener])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles a signal: the first begins the end, the second makes it immediate.

        uvicorn's own would raise the signal again after the end, and the program would not go on after `run`.
        """
        if self._app.state.ending:
            self.should_exit = self.force_exit = True
        else:
            logger.info("ending: answers may finish for %g s; a second signal ends them now", self._end_seconds)
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
