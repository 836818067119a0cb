"""Clients that leave."""

from __future__ import annotations

import contextlib

import anyio
import httpx
import pytest

from serve.http.event_stream import while_connected
from tests.support.serve.fake_engine import FakeEngine
from tests.support.serve.running import connect, raw_head, run_server, wait_until

CHAT = "/v1/chat/completions"
BODY = {"model": "alice", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def engine():
    return FakeEngine(delay=0.05)


@pytest.fixture
def address(engine):
    with run_server(engine) as address:
        yield address


def test_a_client_that_leaves_a_stream_cancels_its_answers(address, engine):
    body = BODY | {"stream": True, "n": 2}
    with httpx.Client() as client, client.stream("POST", address + CHAT, json=body) as answer:
        next(answer.iter_lines())
    wait_until(lambda: not engine.running())
    assert sorted(engine.cancelled) == [0, 1]


def test_a_client_that_leaves_before_its_answer_is_whole_cancels_it(address, engine):
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(address + CHAT, json=BODY, timeout=0.4)
    wait_until(lambda: not engine.running())
    assert engine.cancelled == [0]
    assert 'status="499"' in httpx.get(f"{address}/metrics").text


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(address, engine, caplog):
    with connect(address) as connection:
        connection.sendall(raw_head(CHAT, 90) + b"{")
    wait_until(lambda: f'route="{CHAT}",status="499"' in httpx.get(f"{address}/metrics").text)
    assert engine.submitted == []
    assert "Traceback" not in caplog.text


def test_many_clients_that_leave_let_the_server_answer_others(address, engine):
    for _ in range(10):
        with contextlib.suppress(httpx.ReadTimeout):
            httpx.post(address + CHAT, json=BODY, timeout=0.02)
    wait_until(lambda: not engine.running())
    engine.delay = 0
    assert httpx.post(address + CHAT, json=BODY).status_code == 200


async def _never(*_):
    await anyio.sleep_forever()


async def _gone():
    return {"type": "http.disconnect"}


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
