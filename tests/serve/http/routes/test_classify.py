from __future__ import annotations

import httpx
import pytest

from tests.support.serve.fake_engine import BASE, FakeClassifier, FakeEngine
from tests.support.serve.running import run_server


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
