"""Paths of leaves and Hugging Face's names of the layers in them."""

from __future__ import annotations

import pytest

from jlora.errors import JloraError
from jlora.models.registry import abstract_base, build
from jlora.tree.leaf_paths import leaves_by_path
from jlora.tree.module_names import hf_keys, is_stacked, is_transposed, module_names, parameter, torch_path
from tests.support.models import encoder_cases as cases

QUERY = "params/bert/encoder/layer/attention/self/query/kernel"


def test_a_stacked_leaf_is_a_module_of_every_layer():
    assert module_names(QUERY, 2) == [f"bert.encoder.layer.{i}.attention.self.query" for i in range(2)]
    assert hf_keys(QUERY, 1) == ["bert.encoder.layer.0.attention.self.query.weight"]
    assert is_stacked(QUERY)
    assert is_transposed(QUERY)


def test_a_stack_of_every_sixth_layer_is_a_module_of_each_of_them():
    path = "params/model/layers_1_of_6/self_attn/q_proj/kernel"
    assert is_stacked(path)
    assert module_names(path, 3) == [f"model.layers.{i}.self_attn.q_proj" for i in (1, 7, 13)]
    assert hf_keys("params/transformer/h_1_of_2/ln_1/scale", 2) == [f"transformer.h.{i}.ln_1.weight" for i in (1, 3)]


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
        ("linear/b", "linear", "linear.bias"),  # Haiku
        ("layer_norm/offset", "layer_norm", "layer_norm.bias"),
        ("embed/embeddings", "embed", "embed.weight"),
        ("dense/beta", "dense", "dense.bias"),  # Keras
        ("params/model/layers_24/mlp/up_proj/bias", "model.layers.24.mlp.up_proj", "model.layers.24.mlp.up_proj.bias"),
        ("params/layers_0/bias", "layers_0", "layers_0.bias"),  # a dense layer of Flax's Sequential
    ],
)
def test_an_unstacked_leaf_is_one_module(path, module, key):
    assert module_names(path, None) == [module]
    assert hf_keys(path, None) == [key]
    assert not is_stacked(path)
    assert not is_transposed(path)


@pytest.mark.parametrize("path", ["dense/kernel", "query/kernel/value", "mlp/~/linear_0/w"])
def test_kernels_are_turned_whatever_follows_their_name(path):
    assert parameter(path) == "kernel"
    assert is_transposed(path)
    assert hf_keys(path, None)[0].endswith(".weight")


def test_what_a_leaf_without_a_known_name_is_stays_open():
    assert parameter("cls_token") is None
    assert hf_keys("encoder/cls_token", None) == ["encoder.cls_token"]


def test_a_path_that_stands_for_torchs_name():
    names = {"blocks/q/kernel": "model.layers.{}.q_proj.weight", "out/w": "layer_0.h_1.weight", "out/b": "head.bias"}
    path = torch_path("blocks/q/kernel", names)
    assert is_stacked(path)
    assert module_names(path, 2) == ["model.layers.0.q_proj", "model.layers.1.q_proj"]
    assert hf_keys(torch_path("out/w", names), None) == ["layer_0.h_1.weight"], "as it is given, digits and all"
    assert hf_keys(torch_path("out/b", names), None) == ["head.bias"]
    assert torch_path("other/w", names) == "other/w"
    with pytest.raises(JloraError, match=r"^names: q: expected PyTorch's name, ending in"):
        torch_path("q", {"q": "q_proj"})


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
