"""Headers, slow clients, and a graceful end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from serve.http import server
from serve.http.limits import LARGEST_HEADERS
from tests.support.serve.fake_engine import FakeEngine
from tests.support.serve.running import run_server

ROOT = Path(__file__).parents[3]
CHAT = "/v1/chat/completions"
BODY = {"model": "alice", "messages": [{"role": "user", "content": "Hi"}]}
PROGRAM = """
import sys
from serve.http.app import make_app
from serve.http.server import Server
from serve.http.settings import HttpSettings
from tests.support.serve.fake_engine import TOKENIZER, FakeEngine
app = make_app(FakeEngine(delay=float(sys.argv[1])), TOKENIZER, HttpSettings())
Server(app, host="127.0.0.1", port=0, end_seconds=float(sys.argv[2]), log_level="info").run()
"""


def _connect(address):
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def test_huge_headers_are_refused():
    with run_server(FakeEngine()) as address:
        answer = httpx.get(f"{address}/health", headers={"X-Long": "x" * (LARGEST_HEADERS + 1)})
        assert answer.status_code == 431
        many = {f"X-{index}": "x" * 100 for index in range(500)}
        assert httpx.get(f"{address}/health", headers=many).status_code == 431
        assert httpx.get(f"{address}/{'x' * 20_000}").status_code == 431
        assert httpx.get(f"{address}/health").status_code == 200
        with _connect(address) as connection:  # one that never ends
            connection.sendall(b"GET /health HTTP/1.1\r\nX-Long: ")
            with contextlib.suppress(ConnectionError):
                for _ in range(1000):
                    connection.sendall(b"x" * 10_000)
                pytest.fail("ten megabytes of headers were taken")


def test_a_client_that_never_ends_its_headers_is_cut(monkeypatch):
    monkeypatch.setattr(server, "_HEADER_SECONDS", 0.3)
    with run_server(FakeEngine(delay=0.02)) as address:
        with _connect(address) as silent, _connect(address) as slow:
            slow.sendall(b"GET /health HTTP/1.1\r\nHost: localh")
            assert silent.recv(10) == b""
            assert slow.recv(10) == b""
        with _connect(address) as endless, contextlib.suppress(ConnectionError):
            endless.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(200):
                endless.sendall(b"1\r\nx\r\n")
                time.sleep(0.02)
            pytest.fail("a body without an end was read for 4 seconds")
        answer = httpx.post(address + CHAT, json=BODY, timeout=30)  # takes longer than that
        assert answer.status_code == 200


def test_the_header_does_not_name_the_server():
    with run_server(FakeEngine()) as address:
        assert "server" not in httpx.get(f"{address}/health").headers


def _start(delay, end_seconds):
    """Starts a server in a process, asks it for an answer, and gives it all while it answers."""
    command = [sys.executable, "-c", PROGRAM, str(delay), str(end_seconds)]
    environment = os.environ | {"PYTHONPATH": "."}
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment)
    address = next(line for line in process.stderr if "running on" in line).split("running on ")[1].split()[0]
    answers = []

    def ask():
        with contextlib.suppress(httpx.RemoteProtocolError):  # a server that ends at once
            answers.append(httpx.post(address + CHAT, json=BODY, timeout=60))

    asking = threading.Thread(target=ask)
    asking.start()
    while "jlora_engine_running 1.0" not in httpx.get(f"{address}/metrics", timeout=60).text:
        time.sleep(0.02)
    return process, address, asking, answers


@pytest.mark.parametrize(("end_seconds", "status"), [(60, 200), (0.1, 503)])
def test_at_sigterm_answers_finish_or_say_that_they_were_cut(end_seconds, status):
    process, _, asking, answers = _start(0.05, end_seconds)
    with process:
        process.send_signal(signal.SIGTERM)
        asking.join()
        process.wait(60)
    assert answers[0].status_code == status
    assert (status == 200) == ("That is all" in answers[0].text)
    assert (status == 503) == ("the answer was cut" in answers[0].text)


def test_while_it_ends_the_server_says_so_and_takes_nothing_new():
    process, address, asking, _ = _start(0.5, 60)
    with process:
        process.send_signal(signal.SIGTERM)
        while (health := httpx.get(f"{address}/health", timeout=60)).status_code == 200:
            time.sleep(0.02)
        refused = httpx.post(address + CHAT, json=BODY, timeout=60)
        process.send_signal(signal.SIGTERM)  # a second one does not wait for the engine
        process.wait(30)
        asking.join()
    assert (health.status_code, health.json()) == (503, {"status": "ending"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_ending")
