"""Configs out of GGUF's metadata: what transformers would compute with, or refused."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from jlora.errors import JloraError
from jlora.models.blocks.rotary import rotary_frequencies
from jlora.pretrained.load import stop_ids
from jlora.pretrained.source import PretrainedSource
from tests.support.models import decoder_cases as cases
from tests.support.models import gguf_cases

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "num_key_value_heads",
    "max_position_embeddings",
)
LLAMA31 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.fixture
def load(tmp_path):
    """A function: the config of a file of a tiny model, to which `add(writer)` may have added something."""

    def load(model_type="llama", add=lambda writer: None, vocabulary=60, **switches):
        config = cases.tiny_decoder(model_type, **{"head_dim": 8} | switches)
        writer = gguf_cases.writer(tmp_path / "x.gguf", config, model_type)
        gguf_cases.add_tensors(writer, config, {"model.embed_tokens.weight": np.ones((vocabulary, 32), np.float32)})
        add(writer)
        gguf_cases.close(writer)
        return PretrainedSource(tmp_path / "x.gguf").config

    return load


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_sizes_are_those_that_were_written(load, model_type):
    expected = cases.tiny_decoder(model_type, head_dim=8, rms_norm_eps=1e-5, num_hidden_layers=3)
    found = load(model_type, num_hidden_layers=3, rms_norm_eps=1e-5)
    assert type(found) is type(expected)
    for key in (*SIZES, "rms_norm_eps", "rope_parameters"):
        assert getattr(found, key) == pytest.approx(getattr(expected, key)), key
    assert found.tie_word_embeddings


def test_a_padded_vocabulary_is_as_large_as_its_embedding(load):
    assert load(add=lambda writer: writer.add_token_list(["a", "b"]), vocabulary=64).vocab_size == 64


def test_the_ends_of_texts_and_turns_are_stop_tokens(load):
    def add(writer):
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)

    def add_turns(writer):
        add(writer)
        writer.add_eot_token_id(7)
        writer.add_eom_token_id(2)

    assert stop_ids(load()) == ()
    assert (load(add=add).bos_token_id, stop_ids(load(add=add))) == (1, (2,))
    assert stop_ids(load(add=add_turns)) == (2, 7)


def _llama3_factors(parameters, width):
    """As llama.cpp's converter has them: what the plain frequencies are divided by."""
    config = cases.tiny_decoder("llama", rope_parameters=parameters)
    plain = cases.tiny_decoder("llama", rope_parameters={"rope_type": "default", "rope_theta": 500000.0})
    return rotary_frequencies(plain, width) / rotary_frequencies(config, width)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_31s_factors_are_its_config(load, factor):
    parameters = LLAMA31 | {"factor": factor}
    add = lambda writer: writer.add_tensor("rope_freqs.weight", _llama3_factors(parameters, 32))  # noqa: E731
    found = load(add=add, rope_parameters=parameters, head_dim=32)
    assert found.rope_parameters == pytest.approx(parameters)
    ones = load(add=lambda writer: writer.add_tensor("rope_freqs.weight", np.ones(16, np.float32)), head_dim=32)
    assert ones.rope_parameters["rope_type"] == "default"


@pytest.mark.parametrize("factors", [np.linspace(1, 8, 16), np.ones(4)])
def test_other_factors_are_an_error(load, factors):
    add = lambda writer: writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))  # noqa: E731
    with pytest.raises(JloraError, match=r"rope_freqs\.weight: expected Llama 3\.1's factors for 16 frequencies"):
        load(add=add, head_dim=32)


def test_linear_positions(load):
    def add(writer):
        writer.add_string("llama.rope.scaling.type", "linear")
        writer.add_float32("llama.rope.scaling.factor", 4.0)

    expected = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
    assert load(add=add).rope_parameters == expected
    assert load(add=lambda writer: writer.add_float32("llama.rope.scale_linear", 4.0)).rope_parameters == expected


REFUSED = {
    "yarn": (
        lambda writer: writer.add_string("llama.rope.scaling.type", "yarn"),
        r"llama\.rope\.scaling\.type: expected none or linear; found 'yarn'",
    ),
    "linear and factors": (
        lambda writer: (
            writer.add_string("llama.rope.scaling.type", "linear"),
            writer.add_tensor("rope_freqs.weight", np.ones(4, np.float32)),
        ),
        r"scaling\.type: expected none; found 'linear'",
    ),
    "linear by nothing": (
        lambda writer: writer.add_string("llama.rope.scaling.type", "linear"),
        r"llama\.rope\.scaling\.factor: expected a number above 0; found no such key",
    ),
    "experts": (
        lambda writer: writer.add_uint32("llama.expert_count", 8),
        r"llama\.expert_count: expected no such key; found 8, which is not supported",
    ),
    "turned in part": (
        lambda writer: writer.add_uint32("llama.rope.dimension_count", 4),
        r"llama\.rope\.dimension_count: expected the heads' width, 8; found 4",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_the_model_and_is_not_supported_is_an_error(load, name):
    add, message = REFUSED[name]
    with pytest.raises(JloraError, match=message):
        load(add=add)


def test_keys_that_say_zero_change_nothing(load):
    assert load(add=lambda writer: writer.add_uint32("llama.expert_count", 0)).model_type == "llama"


@pytest.mark.parametrize(
    ("architecture", "kind", "message"),
    [
        (
            "mamba",
            "model",
            r"general\.architecture: expected one of llama, qwen2, qwen3; found 'mamba'\. If docs/models",
        ),
        ("clip", "model", r"found 'clip'\. It is the part of a model that reads images: give the file of the language"),
        ("llama", "adapter", r"general\.type: expected a model; found an adapter of llama\.cpp\. Give its base here"),
    ],
)
def test_another_kind_of_file_is_called_that(architecture, kind, message, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", architecture)
    writer.add_string("general.type", kind)
    gguf_cases.close(writer)
    with pytest.raises(JloraError, match=message):
        PretrainedSource(tmp_path / "x.gguf").config_with()


def test_a_missing_size_is_an_error(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_block_count(2)
    writer.add_uint32("llama.embeding_length", 32)
    gguf_cases.close(writer)
    with pytest.raises(JloraError, match=r"llama\.embeding_length: expected no such key"):
        PretrainedSource(tmp_path / "x.gguf").config_with()
    writer = gguf.GGUFWriter(tmp_path / "y.gguf", "llama")
    writer.add_block_count(2)
    gguf_cases.close(writer)
    with pytest.raises(
        JloraError, match=r"llama\.embedding_length: expected a number above 0; found no such key\. Conv"
    ):
        PretrainedSource(tmp_path / "y.gguf").config_with()


def test_an_architecture_that_is_not_in_the_table(tmp_path):
    gguf_cases.close(gguf.GGUFWriter(tmp_path / "x.gguf", "mamba"))
    with pytest.raises(JloraError, match=r"architecture: expected one of llama, qwen2, qwen3; found 'mamba'"):
        PretrainedSource(tmp_path / "x.gguf").config_with()
