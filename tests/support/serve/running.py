"""A server in a thread, on a port of its own, with an engine that has no model."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

from serve.http.app import make_app
from serve.http.server import Server
from serve.http.settings import HttpSettings
from tests.support.serve.fake_engine import TOKENIZER


def raw_head(path: str, length: int) -> bytes:
    """The head of a POST whose body is said to have this length."""
    lines = (f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {length}")
    return "\r\n".join((*lines, "", "")).encode()


@contextlib.contextmanager
def run_server(engine: Any, settings: HttpSettings | None = None, tokenizer: Any = TOKENIZER) -> Iterator[str]:
    """Gives the server's address, such as http://127.0.0.1:4711."""
    app = make_app(engine, tokenizer, settings or HttpSettings())
    server = Server(app, host="127.0.0.1", port=0, end_seconds=0, log_level="warning")
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    host, port = server.servers[0].sockets[0].getsockname()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.begin_end()
        thread.join(10)
