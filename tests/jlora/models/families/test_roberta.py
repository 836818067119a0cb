"""RoBERTa against transformers' PyTorch model: logits, gradients, dropout, positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jlora.errors import JloraError
from jlora.models.families.roberta import position_ids
from jlora.pretrained.load import build
from tests.support.models import encoder_cases as cases


@pytest.mark.parametrize(
    ("switches", "token_types"),
    [
        ({}, False),
        ({"type_vocab_size": 2, "num_labels": 1}, True),
        ({"pad_token_id": 0, "hidden_act": "gelu_new"}, False),
    ],
)
def test_logits_are_those_of_pytorch(switches, token_types, tmp_path):
    config = cases.tiny_config("roberta", **switches)
    batch = cases.random_batch(config, token_types=token_types)
    cases.assert_same_logits(cases.torch_classifier(config), tmp_path, batch)


def test_padding_in_the_middle_has_the_positions_of_pytorch():
    modeling = pytest.importorskip("transformers.models.roberta.modeling_roberta")
    torch = pytest.importorskip("torch")
    ids = np.random.default_rng(0).integers(0, 3, (5, 9)).astype(np.int32)
    expected = modeling.RobertaEmbeddings.create_position_ids_from_input_ids(torch.tensor(ids), 1)
    np.testing.assert_array_equal(position_ids(jnp.asarray(ids), 1), expected.numpy())


def test_gradients_are_those_of_pytorch_with_and_without_remat(tmp_path):
    config = cases.tiny_config("roberta")
    cases.assert_same_gradients(cases.torch_classifier(config), tmp_path, cases.random_batch(config))


@pytest.mark.parametrize("classifier_dropout", [None, 0.3])
def test_dropout_stands_where_pytorch_has_it(classifier_dropout, tmp_path, monkeypatch):
    rates = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2}
    config = cases.tiny_config("roberta", classifier_dropout=classifier_dropout, **rates)
    oracle = cases.torch_classifier(config)
    cases.assert_same_dropout(oracle, tmp_path, cases.random_batch(config), monkeypatch)


def test_dropout_follows_its_key():
    cases.assert_seeded_dropout(cases.tiny_config("roberta"))


def test_a_batch_longer_than_the_positions_is_an_error():
    model = build(cases.tiny_config("roberta", max_position_embeddings=13))
    with pytest.raises(JloraError, match=r"at most 11 tokens a row.*found 12"):
        jax.eval_shape(model.init, jax.random.key(0), cases.random_batch(model.config))
