"""A graceful end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from jlora.errors import JloraError
from serve.listening.server import bind
from tests.support.serve.fake_engine import FakeEngine
from tests.support.serve.running import connect, is_listening, run_server, wait_until

ROOT = Path(__file__).parents[3]
CHAT = "/v1/chat/completions"
BODY = {"model": "alice", "messages": [{"role": "user", "content": "Hi"}]}
PROGRAM = """
import sys
from serve.http.app import make_app
from serve.listening.server import Server, bind
from serve.http.settings import HttpSettings
from tests.support.serve.fake_engine import TOKENIZER, FakeEngine
app = make_app(FakeEngine(delay=float(sys.argv[1])), TOKENIZER, HttpSettings())
listener = bind("127.0.0.1", 0)
print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
Server(app, listener, end_seconds=float(sys.argv[2]), most_connections=9).run()
"""


def test_an_address_is_taken_before_it_is_listened_at():
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            connect(f"http://127.0.0.1:{port}")
        listener.listen()
        with pytest.raises(JloraError, match=rf"a free address of this machine, found '127.0.0.1', {port}: .*in use"):
            bind("127.0.0.1", port)
    with pytest.raises(JloraError, match=r"found '192.0.2.1', 8000"):
        bind("192.0.2.1", 8000)


def test_the_header_does_not_name_the_server():
    with run_server(FakeEngine()) as address:
        assert "server" not in httpx.get(f"{address}/health").headers


def _start(delay, end_seconds):
    """Starts a server in a process, asks it for an answer, and gives it all while it answers."""
    command = [sys.executable, "-c", PROGRAM, str(delay), str(end_seconds)]
    environment = os.environ | {"PYTHONPATH": "."}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    address = process.stdout.readline().strip()
    wait_until(lambda: is_listening(address), 60)
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
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_stopped")
