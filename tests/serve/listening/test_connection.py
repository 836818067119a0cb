"""Clients that send slowly, never read, send a body in crumbs or open many connections."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
import time

import httpx
import pytest

from serve.http.limits import LARGEST_HEADERS
from serve.listening import connection
from tests.support.serve.fake_engine import FakeEngine
from tests.support.serve.running import connect, post, raw_head, run_server, wait_until

CHAT = "/v1/chat/completions"
BODY = {"model": "alice", "messages": [{"role": "user", "content": "Hi"}]}
LARGE = BODY | {"n": 16, "logprobs": True, "top_logprobs": 20, "max_tokens": 700}
CHUNKED = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"


def _is_dropped(client):
    """Whether the server has dropped the connection; nothing is read for that."""
    return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET


def test_huge_headers_are_refused():
    with run_server(FakeEngine()) as address:
        answer = httpx.get(f"{address}/health", headers={"X-Long": "x" * (LARGEST_HEADERS + 1)})
        assert answer.status_code == 431
        many = {f"X-{index}": "x" * 100 for index in range(500)}
        assert httpx.get(f"{address}/health", headers=many).status_code == 431
        assert httpx.get(f"{address}/{'x' * 20_000}").status_code == 431
        assert httpx.get(f"{address}/health").status_code == 200
        with connect(address) as client:  # one that never ends
            client.sendall(b"GET /health HTTP/1.1\r\nX-Long: ")
            with contextlib.suppress(ConnectionError):
                for _ in range(1000):
                    client.sendall(b"x" * 10_000)
                pytest.fail("ten megabytes of headers were taken")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"no HTTP at all\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: many\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10, 400),
        (f"{CHUNKED}\r\n".encode(), 411),
        (f"{CHUNKED}Content-Length: 5\r\n\r\n".encode(), 411),
    ],
)
def test_what_is_no_request_is_refused_in_openais_form(sent, status):
    with run_server(FakeEngine()) as address, connect(address) as client:
        client.sendall(sent)
        head, _, body = client.makefile("rb").read().partition(b"\r\n\r\n")
        assert httpx.get(f"{address}/health").status_code == 200
    assert f" {status} ".encode() in head.splitlines()[0]
    assert b'"type": "invalid_request_error"' in body


def test_a_body_in_crumbs_keeps_the_server_from_nobody():
    with run_server(FakeEngine()) as address, connect(address) as client:

        def send_crumbs():
            with contextlib.suppress(OSError):
                client.sendall(f"{CHUNKED}\r\n".encode() + b"1\r\nx\r\n" * 1_000_000)

        sending = threading.Thread(target=send_crumbs)
        sending.start()
        began = time.monotonic()
        assert httpx.get(f"{address}/health", timeout=60).status_code == 200
        sending.join()
        assert time.monotonic() - began < 10  # by chunks it would be half a minute


def test_a_client_that_never_ends_its_headers_is_cut(monkeypatch):
    monkeypatch.setattr(connection, "_HEADER_SECONDS", 0.3)
    with run_server(FakeEngine(delay=0.02)) as address:
        with connect(address) as silent, connect(address) as slow:
            slow.sendall(b"GET /health HTTP/1.1\r\nHost: localh")
            assert silent.recv(10) == b""
            assert slow.recv(10) == b""
        with connect(address) as endless, contextlib.suppress(ConnectionError):
            endless.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\n")
            for _ in range(200):
                endless.sendall(b"x")
                time.sleep(0.02)
            pytest.fail("a body that nobody asked for was read for 4 seconds")
        answer = httpx.post(address + CHAT, json=BODY, timeout=30)  # takes longer than that
        assert answer.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_does_not_read_is_cut_and_its_answers_end(monkeypatch, stream):
    monkeypatch.setattr(connection, "_UNREAD_SECONDS", 0.3)
    engine = FakeEngine(text="x" * 600, delay=0.02 if stream else 0)
    with run_server(engine) as address, connect(address, receive_buffer=4096) as client:
        client.sendall(post(CHAT, LARGE | {"stream": stream}))
        wait_until(lambda: len(engine.submitted) == 16)
        wait_until(lambda: _is_dropped(client), 60)
        wait_until(lambda: not engine.running())
        assert bool(engine.cancelled) == stream
        assert httpx.get(f"{address}/health").status_code == 200


def test_a_client_that_reads_slowly_has_its_whole_answer(monkeypatch):
    monkeypatch.setattr(connection, "_UNREAD_SECONDS", 0.5)
    monkeypatch.setattr(connection, "_LEAST_READ", 10_000)
    with run_server(FakeEngine(text="x" * 300)) as address, connect(address, receive_buffer=30_000) as client:
        client.sendall(post(CHAT, LARGE))
        found = b""
        begin = time.monotonic()
        while b"total_tokens" not in found[-100:]:
            found += client.recv(100_000)
            if time.monotonic() - begin < 3:  # several times as long as a client may read nothing
                time.sleep(0.05)
    assert found.count(b'"finish_reason":"stop"') == 16


def test_of_too_many_connections_the_one_that_waits_longest_is_cut():
    with run_server(FakeEngine(delay=0.05), most_connections=4) as address, contextlib.ExitStack() as stack:
        answers = []
        asking = threading.Thread(target=lambda: answers.append(httpx.post(address + CHAT, json=BODY, timeout=60)))
        asking.start()
        wait_until(lambda: "jlora_engine_running 1.0" in httpx.get(f"{address}/metrics").text)
        silent = []
        for sent in (b"", raw_head(CHAT, 90), b"GET / HTTP/1.1\r\n", raw_head(CHAT, 90) + b"{", b"", b""):
            silent.append(stack.enter_context(connect(address)))
            silent[-1].sendall(sent)
            assert httpx.get(f"{address}/health").status_code == 200
        assert [_is_dropped(client) for client in silent] == [True] * 4 + [False] * 2
        asking.join()
    assert answers[0].status_code == 200


def test_where_all_connections_are_answered_a_new_one_is_cut():
    with run_server(FakeEngine(delay=0.05), most_connections=1) as address:
        with httpx.Client() as client, client.stream("POST", address + CHAT, json=BODY | {"stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            with contextlib.suppress(ConnectionError), connect(address) as other:
                assert other.recv(10) == b""
            assert list(lines)[-2] == "data: [DONE]"
        wait_until(lambda: httpx.get(f"{address}/health").status_code == 200)
