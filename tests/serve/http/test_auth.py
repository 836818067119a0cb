from __future__ import annotations

import httpx
import pytest
from starlette.datastructures import Headers

from serve.http.auth import require_access
from serve.http.errors import HttpError
from serve.http.settings import HttpSettings
from tests.support.serve.fake_engine import FakeEngine
from tests.support.serve.running import run_server

OWN = {"host": "localhost:8000"}
PATHS = ["/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/classify", "/metrics"]


def _status(path, headers, **settings):
    try:
        require_access(path, Headers(headers), HttpSettings(**settings))
    except HttpError as error:
        return error.status
    return 200


@pytest.mark.parametrize("path", PATHS)
def test_the_token_opens_what_has_answers_in_it(path):
    assert _status(path, {"authorization": "Bearer open"}, token="open") == 200
    assert _status(path, {"authorization": "bearer open"}, token="open") == 200
    for wrong in ("Bearer opem", "Bearer", "Bearer ", "open", "Basic open", "Bearer open open", "Bearer opé", ""):
        assert _status(path, {"authorization": wrong}, token="open") == 401, wrong
    assert _status(path, {}, token="open") == 401


def test_a_token_of_any_letters_is_compared():
    assert _status("/v1/models", {"authorization": "Bearer geheim"}, token="geheimé") == 401


@pytest.mark.parametrize("path", ["/", "/page/chat.js", "/health"])
def test_the_page_and_the_health_need_none(path):
    assert _status(path, {}, token="open") == 200


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "[::1]:80", "[::1]", "LOCALHOST"])
def test_without_a_token_this_machines_names_are_answered(host):
    assert _status("/v1/models", {"host": host}) == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "localhost.evil.example", "", "127.0.0.1.io"])
def test_without_a_token_another_sites_name_is_refused(host):
    assert _status("/v1/models", {"host": host}) == 403
    assert _status("/", {"host": host}) == 403
    assert _status("/v1/models", {"host": host, "authorization": "Bearer open"}, token="open") == 200


def test_the_admins_token_is_another_one():
    both = {"token": "open", "admin_token": "root"}
    assert _status("/admin/adapters", {"authorization": "Bearer root"}, **both) == 200
    assert _status("/admin/adapters/a", {"authorization": "Bearer open"}, **both) == 401
    assert _status("/v1/models", {"authorization": "Bearer root"}, **both) == 401
    assert _status("/admin/adapters", OWN | {"authorization": "Bearer root"}, admin_token="root") == 200
    assert _status("/admin/adapters", OWN) == 403


def test_a_refusal_is_an_error_of_openais_form_and_never_sniffed():
    with run_server(FakeEngine(), HttpSettings(token="open")) as address:
        answer = httpx.get(f"{address}/v1/models", headers={"Authorization": "Bearer shut"})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "open" not in answer.text
