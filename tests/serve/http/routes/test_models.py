from __future__ import annotations

import openai
import pytest

from tests.support.serve.fake_engine import BASE, FakeClassifier, FakeEngine
from tests.support.serve.running import run_server


def test_the_base_and_the_adapters_are_listed_and_found_by_name():
    with run_server(FakeEngine()) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="-") as client:
        models = list(client.models.list())
        assert [(model.id, model.parent) for model in models] == [(BASE, None), ("alice", BASE), ("holmes", BASE)]
        assert client.models.retrieve("alice") == models[1]
        with pytest.raises(openai.NotFoundError, match="no model has the name 'bob'"):
            client.models.retrieve("bob")


def test_classifiers_have_their_labels():
    with run_server(FakeClassifier()) as address, openai.OpenAI(base_url=f"{address}/v1", api_key="-") as client:
        assert client.models.retrieve("mood").labels == ["bad", "good"]
