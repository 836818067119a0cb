from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from serve.engine.requests import EngineStoppedError
from tests.support.serve.fake_engine import BASE, FakeClassifier, FakeEngine
from tests.support.serve.running import run_server, wait_until


@pytest.fixture(scope="module")
def client():
    with run_server(FakeClassifier()) as address, httpx.Client(base_url=address) as client:
        yield client


def _ask(client, **body):
    return client.post("/v1/classify", json=body)


def test_each_text_has_a_label_and_the_probability_of_each(client):
    answer = _ask(client, model="mood", input=["ab", "abc"]).json()
    assert [(row["index"], row["label"]) for row in answer["data"]] == [(0, "bad"), (1, "good")]
    assert answer["data"][0]["probabilities"] == {"bad": 0.75, "good": 0.25}
    assert (answer["model"], answer["usage"]) == ("mood", {"prompt_tokens": 5, "total_tokens": 5})


def test_one_text_and_pairs_are_taken_and_adapters_have_labels_of_their_own(client):
    assert [row["label"] for row in _ask(client, model="topic", input="abcd").json()["data"]] == ["law"]
    pairs = _ask(client, model="topic", input=[["ab", "cde"], ["a", "bc"]]).json()
    assert [row["label"] for row in pairs["data"]] == ["sport", "art"]


@pytest.mark.parametrize(
    "given", [[], ["a"] * 257, [["a"]], [["a", "b", "c"]], [["a", 1]], 5, None, {"a": 1}, [[]], [None]]
)
def test_what_is_no_text_is_refused(client, given):
    answer = _ask(client, model="mood", input=given)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input"


def test_a_text_past_the_context_is_refused_with_its_place(client):
    answer = _ask(client, model="mood", input=["a", "b" * 101])
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "input[1]: expected at most 100 tokens, found 101"


@pytest.mark.parametrize("name", ["bob", "../mood", BASE, ""])
def test_a_model_without_labels_is_not_found(client, name):
    assert _ask(client, model=name, input="a").status_code == 404


def test_a_server_of_language_models_says_that_it_does_not_classify():
    with run_server(FakeEngine()) as address:
        answer = httpx.post(f"{address}/v1/classify", json={"model": "alice", "input": "a"})
    assert answer.status_code == 404
    assert "generate text" in answer.json()["error"]["message"]


def test_a_client_that_leaves_cancels_its_rows():
    engine = FakeClassifier()
    engine.is_silent = True
    with run_server(engine) as address:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/classify", json={"model": "mood", "input": "a"}, timeout=0.3)
        wait_until(lambda: engine.answers[0].cancelled())
        assert 'status="499"' in httpx.get(f"{address}/metrics").text


def test_requests_that_wait_keep_nobody_from_other_routes():
    engine = FakeClassifier()
    engine.is_silent = True
    with run_server(engine) as address, ThreadPoolExecutor(60) as executor:
        body = {"model": "mood", "input": "a"}
        waiting = [executor.submit(httpx.post, f"{address}/v1/classify", json=body, timeout=60) for _ in range(60)]
        wait_until(lambda: len(engine.answers) == 60)  # more than a server has threads
        assert httpx.get(f"{address}/health").status_code == 200
        for answer in engine.answers:
            answer.set_exception(EngineStoppedError("the server has ended"))
        assert {answer.result().status_code for answer in waiting} == {503}
