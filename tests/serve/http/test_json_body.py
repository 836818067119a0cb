"""Bodies that are no JSON, too large, too slow or of another type, against a running server."""

from __future__ import annotations

import json
import socket
import time

import httpx
import pytest
from pydantic import BaseModel

from serve.http.errors import HttpError
from serve.http.json_body import parse_body
from serve.http.settings import HttpSettings
from tests.support.serve.fake_engine import FakeEngine
from tests.support.serve.running import raw_head, run_server

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
GOOD = {"model": "alice", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture(scope="module")
def client():
    settings = HttpSettings(largest_body=10_000, body_seconds=0.3)
    with run_server(FakeEngine(), settings) as address, httpx.Client(base_url=address, timeout=30) as client:
        yield client
        assert client.post(CHAT, json=GOOD).status_code == 200  # after all of it the server answers


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"not json",
        b'{"model": "\xff\xfe"}',
        b"\xef\xbb\xbf{}",
        b'{"model": "alice", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "\\udfff", "messages": [{"role": "user", "content": "x"}]}',
        b"[" * 5000,
        b'{"a":' * 1500 + b"1" + b"}" * 1500,
        b'{"temperature": ' + b"9" * 5000 + b"}",
        b"[]",
        b"null",
        b'"text"',
        b'{"model": "bob", "model": "alice", "messages": [{"role": "user", "content": "x"}]}',
        b'{"model": "alice"}',
        b'{"model": 5, "messages": []}',
        b'{"model": ["alice"], "messages": []}',
    ],
)
def test_what_is_no_request_is_a_400_in_openais_form(client, body):
    answer = client.post(CHAT, content=body, headers=JSON)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 700


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", '"0.5"', "true", "[]"])
def test_a_temperature_that_is_no_number_is_refused(client, value):
    body = json.dumps(GOOD)[:-1] + f', "temperature": {value}}}'
    answer = client.post(CHAT, content=body.encode(), headers=JSON)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "temperature")


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_another_type_of_body_is_refused_as_a_form_of_another_site_could_send_it(client, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    answer = client.post(CHAT, content=json.dumps(GOOD).encode(), headers=headers)
    assert answer.status_code == 415


def test_the_type_may_say_its_characters(client):
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert client.post(CHAT, content=json.dumps(GOOD).encode(), headers=headers).status_code == 200


def test_a_large_body_is_refused_and_so_is_one_that_does_not_say_its_length(client):
    body = json.dumps(GOOD | {"user": "x" * 10_000}).encode()
    assert client.post(CHAT, content=body, headers=JSON).status_code == 413
    assert client.post(CHAT, content=iter([body[:6000], body[6000:]]), headers=JSON).status_code == 411


def test_a_body_that_claims_to_be_huge_is_refused_before_it_is_read(client):
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(raw_head(CHAT, 99999999999))
        assert b" 413 " in connection.recv(100)


def test_a_slow_body_is_given_up(client):
    began = time.monotonic()
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(raw_head(CHAT, 90) + b"{")
        assert b" 408 " in connection.recv(100)
    assert time.monotonic() - began < 10


class _Part(BaseModel):
    text: str


class _Schema(BaseModel):
    parts: list[_Part]
    either: str | list[int] = ""


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"parts": [{"text": "a"}, {}]}', "parts[1].text"),
        (b'{"parts": 5}', "parts"),
        (b'{"parts": [], "either": {"a": 1}}', "either"),
        (b'{"parts": [], "either": [1, "a"]}', "either"),
    ],
)
def test_an_error_names_the_key_as_it_is_in_the_body(body, param):
    with pytest.raises(HttpError) as error:
        parse_body(body, _Schema)
    assert error.value.param == param
    assert str(error.value).startswith(f"{param}: ")
