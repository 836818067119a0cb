"""Paths of leaves and Hugging Face's names of the layers in them."""

from __future__ import annotations

import encoder_cases as cases
import pytest

from jlora.models import abstract_base, build
from jlora.names import hf_keys, is_stacked, is_transposed, module_names
from jlora.paths import leaves_by_path

QUERY = "params/bert/encoder/layer/attention/self/query/kernel"


def test_a_stacked_leaf_is_a_module_of_every_layer():
    assert module_names(QUERY, 2) == [f"bert.encoder.layer.{i}.attention.self.query" for i in range(2)]
    assert hf_keys(QUERY, 1) == ["bert.encoder.layer.0.attention.self.query.weight"]
    assert is_stacked(QUERY)
    assert is_transposed(QUERY)


@pytest.mark.parametrize(
    ("path", "module", "key"),
    [
        ("params/classifier/bias", "classifier", "classifier.bias"),
        (
            "params/bert/embeddings/LayerNorm/scale",
            "bert.embeddings.LayerNorm",
            "bert.embeddings.LayerNorm.weight",
        ),
        ("params/wte/embedding", "wte", "wte.weight"),
        ("query/bias/value", "query", "query.bias"),  # Flax NNX
    ],
)
def test_an_unstacked_leaf_is_one_module(path, module, key):
    assert module_names(path, None) == [module]
    assert hf_keys(path, None) == [key]
    assert not is_stacked(path)
    assert not is_transposed(path)


@pytest.mark.parametrize("family", cases.ENCODERS)
def test_keys_and_shapes_are_those_of_the_pytorch_model(family):
    config = cases.tiny_config(family)
    found = {}
    for path, leaf in leaves_by_path(abstract_base(build(config))).items():
        shape = leaf.shape[1:] if is_stacked(path) else leaf.shape
        for key in hf_keys(path, leaf.shape[0] if is_stacked(path) else None):
            found[key] = shape[::-1] if is_transposed(path) else shape
    expected = cases.torch_classifier(config).state_dict()
    assert found == {key: tuple(value.shape) for key, value in expected.items()}
