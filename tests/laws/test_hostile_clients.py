"""Attacks on one server with a real engine, one after another; at the end it answers, and its memory is bounded.

Each attack is followed by a question to both adapters, whose answers are what each gives alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from serve.http.settings import HttpSettings
from serve.http.token_text import token_text
from serve.listening import connection
from tests.support.programs.peak_memory import anonymous_bytes
from tests.support.serve.adapter_folders import BROKEN, write_adapters
from tests.support.serve.engines import alone, open_tiny, prompt
from tests.support.serve.running import connect, post, raw_head, run_server, wait_until

CHAT, TEXT, ADAPTERS = "/v1/chat/completions", "/v1/completions", "/admin/adapters"
ADMIN = {"Authorization": "Bearer the admin's own"}
BAD_NAMES = ["../x", "/etc/passwd", "a/b", "..", "a\0b", "x" * 10_000, "", "alice ", "é"]
HI = [{"role": "user", "content": "Hi"}]
LENGTH, MOST = 12, 100
"""Tokens of the prompts whose answers are compared, and of the longest of these answers."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_adapters(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def engine():
    opened = open_tiny(adapters=0, rows=2, waiting=32)
    yield opened
    opened.engine.stop(0)


@pytest.fixture(scope="module")
def address(engine, root):
    settings = HttpSettings(
        admin_token="the admin's own", adapter_folders=(root,), largest_body=100_000, body_seconds=0.5
    )
    with run_server(engine.engine, settings, engine.tokenizer) as address:
        yield address


@pytest.fixture(scope="module")
def client(address):
    with httpx.Client(base_url=address, timeout=120) as client:
        for name, folder in (("alice", "a0"), ("bob", "a1")):
            assert _load(client, name, folder).status_code == 200
        yield client


@pytest.fixture(scope="module")
def bytes_before(client, engine):
    """Resident bytes before the attacks, after all that this file compares with was computed."""
    for index in (None, 0, 1, 2, 3):
        _expected(engine, index, 0, 1)
    return anonymous_bytes()


@pytest.fixture(autouse=True)
def answers_after_it(client, engine, bytes_before):
    """After each attack the server answers, and each adapter gives its own answer."""
    yield
    wait_until(lambda: engine.engine.counts()["running"] + engine.engine.counts()["waiting"] == 0, 60)
    for name, index in (("alice", 0), ("bob", 1), ("tiny", None)):
        assert _tokens(_ask(client, name, 900, 6)) == _expected(engine, index, 900, 6)


def _load(client, name, folder, headers=ADMIN):
    return client.post(ADAPTERS, json={"name": name, "folder": str(folder)}, headers=headers)


def _body(name, seed, count, **fields):
    body = {"model": name, "prompt": prompt(seed, LENGTH), "max_tokens": count, "temperature": 0, "logprobs": 0}
    return body | fields


def _ask(client, *question, **fields):
    return client.post(TEXT, json=_body(*question, **fields))


def _tokens(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["logprobs"]["tokens"]


def _expected(engine, index, seed, count):
    """The tokens, as text, that one adapter gives alone; one program finds them, whatever the prompt and the count."""
    return [token_text(engine.tokenizer, token) for token in alone(index, tuple(prompt(seed, LENGTH)), MOST)[:count]]


def _names(client):
    return [model["id"] for model in client.get("/v1/models").json()["data"]]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_is_only_a_name(client, name):
    for path, body in ((CHAT, {"messages": HI}), (TEXT, {"prompt": "x"})):
        assert client.post(path, json={"model": name} | body).status_code == 404
    assert _load(client, name, "a2").status_code == 400
    assert _names(client) == ["tiny", "alice", "bob"]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer"}])
def test_only_the_admin_changes_adapters(client, headers):
    assert _load(client, "alice", "a3", headers).status_code == 401
    assert client.delete(f"{ADAPTERS}/alice", headers=headers).status_code == 401


@pytest.mark.parametrize("folder", [*BROKEN, "nothing", "link-out", "nowhere", "/etc", "../..", "a\0b", "x" * 10_000])
def test_what_is_no_adapter_of_this_base_is_refused_and_changes_nothing(client, folder):
    for name in ("new", "alice"):
        answer = _load(client, name, folder)
        assert 400 <= answer.status_code < 500, answer.text
        assert len(answer.text) < 2000
    assert _names(client) == ["tiny", "alice", "bob"]


@pytest.mark.parametrize(
    "more",
    [
        {"max_tokens": 10**18},
        {"max_tokens": 121},
        {"n": 10**9},
        {"n": 16, "prompt": ["x"] * 100},
        {"logprobs": 10**9},
        {"stop": ["x"] * 1000},
        {"stop": "x" * 10_000},
        {"prompt": "the sea " * 100},
        {"prompt": "x" * 90_000},
        {"prompt": "x" * 200_000},
        {"prompt": [1] * 121},
        {"prompt": [10**30]},
        {"temperature": 1e300},
        {"seed": 1e300},
    ],
)
def test_what_is_too_much_is_refused(client, more):
    answer = client.post(TEXT, json={"model": "alice", "prompt": "x", "max_tokens": 3} | more)
    assert answer.status_code in (400, 413)
    assert len(answer.text) < 2000


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"[" * 90_000, b'{"model": "\\ud800"}', b"{}" * 40_000, b'"' * 99_999]
)
def test_what_is_no_json_is_refused(client, content):
    answer = client.post(CHAT, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    "content", ["{{ 7 * 7 }}", "{% for x in range(10**9) %}x{% endfor %}", "{{ cycler.__init__ }}"]
)
def test_a_template_in_a_message_is_only_text(client, content):
    body = {"model": "alice", "messages": [{"role": "user", "content": content}], "max_tokens": 2}
    assert client.post(CHAT, json=body).status_code == 200


def test_as_many_answers_as_may_be_asked_for(client):
    body = {"model": "alice", "prompt": "x", "max_tokens": 30, "n": 16, "logprobs": 20, "stop": ["~" * 256] * 16}
    answer = client.post(TEXT, json=body | {"temperature": 2}).json()
    assert len(answer["choices"]) == 16


def test_more_requests_than_may_wait_are_told_to_come_back(client, engine):
    body = {"model": "alice", "prompt": "x", "max_tokens": 20, "n": 16, "temperature": 0}
    with ThreadPoolExecutor(8) as executor:
        found = list(executor.map(lambda _: client.post(TEXT, json=body).status_code, range(8)))
    assert set(found) == {200, 429}  # some are answered: they do not keep each other out


def test_clients_that_vanish_at_any_time_leave_no_answer_running(address, client, engine):
    body = post(CHAT, {"model": "bob", "messages": HI, "stream": True, "n": 4, "max_tokens": 60})
    for sent, read in [(10, 0), (len(body) // 2, 0), (len(body) - 1, 0), *((len(body), read) for read in (0, 1, 400))]:
        with connect(address) as leaving:
            leaving.sendall(body[:sent])
            assert not read or leaving.recv(read)
    wait_until(lambda: engine.engine.counts()["running"] == 0, 60)


def test_a_client_that_never_reads_ends_its_answers(address, engine, monkeypatch):
    monkeypatch.setattr(connection, "_UNREAD_SECONDS", 0.3)
    body = {"model": "alice", "prompt": "x", "max_tokens": 60, "n": 16, "logprobs": 20, "stream": True}
    with connect(address, receive_buffer=4096) as silent:
        silent.sendall(post(TEXT, body))
        wait_until(lambda: silent.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET, 60)
    wait_until(lambda: engine.engine.counts()["running"] == 0, 60)
    assert engine.engine.counts()["waiting"] == 0


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /health HTTP/1.1\r\nHost: localhost\r\n" + "X-Long: x\r\n" * 3000, 431),
        ("GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + "x" * 100_000, 431),
        ("POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        ("GET /health HTTP/1.1\r\nHost: evil.example\r\n", 403),
        ("BREW /health HTTP/1.1\r\nHost: localhost\r\n", 405),
        ("GET /health\r\n", 400),
    ],
)
def test_what_no_client_of_ours_sends_is_refused(address, head, status):
    with connect(address) as client:
        client.sendall(f"{head}\r\n\r\n".encode())
        assert client.recv(12) == f"HTTP/1.1 {status}".encode()


def test_clients_that_send_slowly_keep_nobody_waiting(address, client):
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(address)) for _ in range(40)]
        for index, each in enumerate(slow):
            each.sendall(raw_head(CHAT, 90)[: None if index % 2 else 30])
        assert _ask(client, "alice", 1, 3).status_code == 200
        assert {each.recv(12) for each in slow[1::2]} == {b"HTTP/1.1 408"}


def test_an_adapter_that_overflows_is_an_error_and_never_the_bases_answer(client):
    assert _load(client, "huge", "huge").status_code == 200
    for stream in (False, True):
        answer = _ask(client, "huge", 3, 5, stream=stream)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "answer_failed")
    assert client.delete(f"{ADAPTERS}/huge", headers=ADMIN).status_code == 200


def test_an_adapter_whose_files_are_damaged_later_is_an_error(client, root):
    shutil.copytree(root / "a2", root / "later")
    assert _load(client, "later", "later").status_code == 200
    for name in ("alice", "bob"):  # which take its slot
        _ask(client, name, 3, 1)
    (root / "later" / "adapter_model.safetensors").write_bytes(b"damaged")
    answer = _ask(client, "later", 3, 5)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "answer_failed")
    assert client.delete(f"{ADAPTERS}/later", headers=ADMIN).status_code == 200


@pytest.mark.parametrize("change", ["replace", "unload"])
def test_a_change_during_an_answer_is_for_later_requests_only(client, engine, change):
    assert _load(client, "guest", "a2").status_code == 200
    with client.stream("POST", TEXT, json=_body("guest", 50, MOST, stream=True)) as answer:
        lines = answer.iter_lines()
        found = [next(lines)]
        if change == "replace":
            assert _load(client, "guest", "a3").status_code == 200
        else:
            assert client.delete(f"{ADAPTERS}/guest", headers=ADMIN).status_code == 200
            assert _ask(client, "guest", 50, 5).status_code == 404
            assert _load(client, "guest", "a3").status_code == 200
        found += lines
    chunks = [json.loads(line.removeprefix("data: ")) for line in found if "{" in line]
    tokens = [token for chunk in chunks for token in chunk["choices"][0]["logprobs"]["tokens"]]
    assert tokens == _expected(engine, 2, 50, MOST)
    assert _tokens(_ask(client, "guest", 50, 20)) == _expected(engine, 3, 50, 20)
    assert client.delete(f"{ADAPTERS}/guest", headers=ADMIN).status_code == 200


def test_two_characters_share_nothing_of_one_prompt(client, engine):
    before = engine.engine.counts()["prefix_tokens"]
    for name, index in (("alice", 0), ("bob", 1), ("tiny", None)):
        assert _tokens(_ask(client, name, 60, 10)) == _expected(engine, index, 60, 10)
    assert engine.engine.counts()["prefix_tokens"] == before


def test_a_thousand_rounds_of_loading_and_unloading_take_no_memory(client, engine):
    def play(rounds):
        for number in rounds:
            assert _load(client, f"guest-{number}", f"small{number % 5}").status_code == 200
            assert client.delete(f"{ADAPTERS}/guest-{number}", headers=ADMIN).status_code == 200
        return anonymous_bytes()

    before = play(range(100))
    assert play(range(100, 1000)) - before < 30e6
    assert "guest-" not in client.get("/metrics").text


def test_after_all_of_it_the_server_answers_and_its_memory_is_bounded(client, engine, bytes_before):
    with ThreadPoolExecutor(4) as executor:
        asked = [("alice", 0), ("bob", 1), ("tiny", None)] * 4
        found = executor.map(lambda pair: _tokens(_ask(client, pair[0], 70, 20)), asked)
        assert list(found) == [_expected(engine, index, 70, 20) for _, index in asked]
    assert client.get("/health").json() == {"status": "ready"}
    assert _names(client) == ["tiny", "alice", "bob"]
    assert len(list(Path("/proc/self/fd").iterdir())) < 200
    assert threading.active_count() < 100
    assert anonymous_bytes() - bytes_before < 200e6
