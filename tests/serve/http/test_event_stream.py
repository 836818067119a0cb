"""Clients that leave, and clients that do not read."""

from __future__ import annotations

import contextlib
import socket
import time

import anyio
import httpx
import pytest

from serve.http.event_stream import EventStream, while_connected
from serve.http.settings import HttpSettings
from tests.support.serve.fake_engine import FakeEngine
from tests.support.serve.running import raw_head, run_server

CHAT = "/v1/chat/completions"
BODY = {"model": "alice", "messages": [{"role": "user", "content": "Hi"}]}


def _wait(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)


@pytest.fixture
def engine():
    return FakeEngine(delay=0.05)


@pytest.fixture
def address(engine):
    with run_server(engine, HttpSettings(write_seconds=0.5)) as address:
        yield address


def test_a_client_that_leaves_a_stream_cancels_its_answers(address, engine):
    body = BODY | {"stream": True, "n": 2}
    with httpx.Client() as client, client.stream("POST", address + CHAT, json=body) as answer:
        next(answer.iter_lines())
    _wait(lambda: not engine.running())
    assert sorted(engine.cancelled) == [0, 1]


def test_a_client_that_leaves_before_its_answer_is_whole_cancels_it(address, engine):
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(address + CHAT, json=BODY, timeout=0.4)
    _wait(lambda: not engine.running())
    assert engine.cancelled == [0]
    assert 'status="499"' in httpx.get(f"{address}/metrics").text


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(address, engine, caplog):
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(raw_head(CHAT, 90) + b"{")
    _wait(lambda: f'route="{CHAT}",status="499"' in httpx.get(f"{address}/metrics").text)
    assert engine.submitted == []
    assert "Traceback" not in caplog.text


def test_many_clients_that_leave_let_the_server_answer_others(address, engine):
    for _ in range(10):
        with contextlib.suppress(httpx.ReadTimeout):
            httpx.post(address + CHAT, json=BODY, timeout=0.02)
    _wait(lambda: not engine.running())
    engine.delay = 0
    assert httpx.post(address + CHAT, json=BODY).status_code == 200


def _run(response_or_work, receive, send=None):
    return anyio.run(lambda: response_or_work({"type": "http"}, receive, send))


async def _never(*_):
    await anyio.sleep_forever()


async def _gone():
    return {"type": "http.disconnect"}


def test_a_client_that_does_not_read_is_given_up_and_its_answers_end():
    closed, sent = [], []

    async def events():
        yield "one"
        yield "two"

    async def send(message):
        sent.append(message)
        if message["type"] == "http.response.body":
            await anyio.sleep_forever()

    _run(EventStream(events(), lambda: closed.append(True), 0.05), _never, send)
    assert [message.get("body") for message in sent] == [None, b"data: one\n\n"]
    assert closed == [True]


def test_work_is_cancelled_when_its_client_leaves():
    async def run(receive, work):
        return await while_connected(receive, work)

    async def answer():
        return 7

    async def fail():
        raise ValueError("x")

    assert anyio.run(run, _gone, _never) is None
    assert anyio.run(run, _never, answer) == 7
    with pytest.raises(ValueError, match=r"^x$"):
        anyio.run(run, _never, fail)
