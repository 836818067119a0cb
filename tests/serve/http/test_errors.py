from __future__ import annotations

import httpx
import pytest

from jlora.errors import ContextLengthError, JloraError
from serve.engine.requests import AdapterRefusedError, BusyError, EngineStoppedError, UnknownAdapterError
from serve.http.errors import HttpError, error_body, to_http_error
from tests.support.serve.fake_engine import FakeEngine
from tests.support.serve.running import run_server


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (UnknownAdapterError("x"), 404, "not_found_error", "model_not_found"),
        (ContextLengthError("x"), 400, "invalid_request_error", "context_length_exceeded"),
        (BusyError("x"), 429, "rate_limit_error", "server_busy"),
        (EngineStoppedError("x"), 503, "server_error", "server_stopped"),
        (AdapterRefusedError("x"), 400, "invalid_request_error", "adapter_refused"),
        (JloraError("x"), 400, "invalid_request_error", None),
        (HttpError(503, "x", code="c"), 503, "server_error", "c"),
    ],
)
def test_each_error_has_the_status_that_says_whose_it_is(error, status, kind, code):
    found = to_http_error(error)
    assert found.status == status
    assert error_body(found) == {"error": {"message": "x", "type": kind, "param": found.param, "code": code}}


@pytest.fixture(scope="module")
def engine():
    return FakeEngine()


@pytest.fixture(scope="module")
def address(engine):
    with run_server(engine) as address:
        yield address


def test_unknown_routes_and_methods_have_openais_form(address):
    missing = httpx.get(f"{address}/v2/none")
    assert (missing.status_code, missing.json()["error"]["message"]) == (404, "GET /v2/none: Not Found")
    assert httpx.get(f"{address}/health/").status_code == 404
    wrong = httpx.get(f"{address}/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/page/../app.py", "/page/%2e%2e/app.py", "/page/", "/%00"])
def test_no_other_file_is_served(address, path):
    assert httpx.get(address + path).status_code == 404


def test_a_bug_is_a_500_that_tells_nothing(address, engine, monkeypatch):
    def fail():
        raise KeyError("a secret")

    monkeypatch.setattr(engine, "adapters", fail)
    answer = httpx.get(f"{address}/v1/models")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text


def test_an_engine_that_takes_no_more_is_a_503(address, engine, monkeypatch):
    monkeypatch.setattr(engine, "is_stopped", True)
    body = {"model": "alice", "prompt": "x"}
    assert httpx.post(f"{address}/v1/completions", json=body).status_code == 503
