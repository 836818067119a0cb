from __future__ import annotations

import httpx

from serve.http.settings import HttpSettings
from tests.support.serve.fake_engine import FakeClassifier, FakeEngine
from tests.support.serve.running import run_server


def _ask(address, **options):
    body = {"model": "alice", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4} | options
    return httpx.post(f"{address}/v1/chat/completions", json=body)


def test_a_server_that_takes_requests_is_healthy():
    with run_server(FakeEngine()) as address:
        assert httpx.get(f"{address}/health").json() == {"status": "ready"}


def test_metrics_count_requests_tokens_and_times():
    with run_server(FakeEngine()) as address:
        assert [_ask(address).status_code for _ in range(2)] == [200, 200]
        assert _ask(address, model="made-up-name").status_code == 404
        assert httpx.get(f"{address}/no/such/route").status_code == 404
        answer = httpx.get(f"{address}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    chat = 'jlora_requests_total{model="%s",route="/v1/chat/completions",status="%s"}'
    assert lines[chat % ("alice", 200)] == "2.0"
    assert lines[chat % ("", 404)] == "1.0"
    assert lines['jlora_requests_total{model="",route="none",status="404"}'] == "1.0"
    assert lines['jlora_tokens_total{kind="answer"}'] == "8.0"
    assert lines["jlora_time_to_first_token_seconds_count"] == "2.0"
    assert lines["jlora_time_between_tokens_seconds_count"] == "6.0"
    assert (lines["jlora_engine_slots"], lines["jlora_engine_hits_total"]) == ("2.0", "7.0")
    assert "made-up-name" not in answer.text


def test_numbers_that_go_down_are_gauges():
    with run_server(FakeEngine()) as address:
        kinds = dict(line.split()[2:] for line in httpx.get(f"{address}/metrics").text.splitlines() if "# TYPE" in line)
    gauges = {name for name, kind in kinds.items() if name.startswith("jlora_engine_") and kind == "gauge"}
    assert gauges <= {f"jlora_engine_{name}" for name in ("running", "waiting", "slots", "slots_used")}
    assert "jlora_engine_running" in gauges


def test_classifications_are_counted_too():
    with run_server(FakeClassifier()) as address:
        httpx.post(f"{address}/v1/classify", json={"model": "mood", "input": "abc"})
        text = httpx.get(f"{address}/metrics").text
    assert 'jlora_requests_total{model="mood",route="/v1/classify",status="200"} 1.0' in text
    assert 'jlora_tokens_total{kind="prompt"} 3.0' in text


def test_metrics_need_the_token_and_health_does_not():
    with run_server(FakeEngine(), HttpSettings(token="t")) as address:
        assert httpx.get(f"{address}/metrics").status_code == 401
        assert httpx.get(f"{address}/metrics", headers={"Authorization": "Bearer t"}).status_code == 200
        assert httpx.get(f"{address}/health").status_code == 200
