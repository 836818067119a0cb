"""DistilBERT against transformers' PyTorch model: logits, gradients, dropout."""

from __future__ import annotations

import jax
import pytest

from jlora.errors import JloraError
from jlora.pretrained.load import build
from tests.support.models import encoder_cases as cases


@pytest.mark.parametrize("switches", [{}, {"activation": "relu", "num_labels": 1}, {"n_layers": 1, "n_heads": 2}])
def test_logits_are_those_of_pytorch(switches, tmp_path):
    config = cases.tiny_config("distilbert", **switches)
    cases.assert_same_logits(cases.torch_classifier(config), tmp_path, cases.random_batch(config))


def test_gradients_are_those_of_pytorch_with_and_without_remat(tmp_path):
    config = cases.tiny_config("distilbert")
    cases.assert_same_gradients(cases.torch_classifier(config), tmp_path, cases.random_batch(config))


def test_dropout_stands_where_pytorch_has_it(tmp_path, monkeypatch):
    config = cases.tiny_config("distilbert", dropout=0.1, attention_dropout=0.2, seq_classif_dropout=0.3)
    oracle = cases.torch_classifier(config)
    cases.assert_same_dropout(oracle, tmp_path, cases.random_batch(config), monkeypatch)


def test_dropout_follows_its_key():
    cases.assert_seeded_dropout(cases.tiny_config("distilbert"))


def test_a_batch_longer_than_the_positions_is_an_error():
    model = build(cases.tiny_config("distilbert", max_position_embeddings=11))
    with pytest.raises(JloraError, match=r"at most 11 tokens a row.*found 12"):
        jax.eval_shape(model.init, jax.random.key(0), cases.random_batch(model.config))
