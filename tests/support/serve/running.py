"""A server in a thread, on a port of its own, with an engine that has no model."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from serve.http.app import make_app
from serve.http.settings import HttpSettings
from serve.listening.server import Server, bind
from tests.support.serve.fake_engine import TOKENIZER


def raw_head(path: str, length: int) -> bytes:
    """The head of a POST whose body is said to have this length."""
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {length}")
    return "\r\n".join((*lines, "", "")).encode()


def post(path: str, body: Any) -> bytes:
    """A whole request with this body."""
    content = json.dumps(body).encode()
    return raw_head(path, len(content)) + content


def connect(address: str, receive_buffer: int | None = None) -> socket.socket:
    """Opens a connection to the server; `receive_buffer`: the bytes that the system may hold for who never reads."""
    host, port = address.removeprefix("http://").split(":")
    found = socket.socket()
    if receive_buffer is not None:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    found.settimeout(10)
    try:
        found.connect((host, int(port)))
    except OSError:
        found.close()
        raise
    return found


def is_listening(address: str) -> bool:
    """Whether a server listens there."""
    try:
        connect(address).close()
    except ConnectionRefusedError:
        return False
    return True


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Waits until something is so; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)


@contextlib.contextmanager
def run_server(
    engine: Any, settings: HttpSettings | None = None, tokenizer: Any = TOKENIZER, most_connections: int = 100
) -> Iterator[str]:
    """Gives the server's address, such as http://127.0.0.1:4711."""
    app = make_app(engine, tokenizer, settings or HttpSettings())
    options: dict[str, Any] = {"most_connections": most_connections, "log_level": "warning"}
    listener = bind("127.0.0.1", 0)
    server = Server(app, listener, end_seconds=0, **options)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.begin_end()
        thread.join(10)
