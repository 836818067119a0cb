"""Stored configs: overrides, labels, and folders that are no model."""

from __future__ import annotations

import json

import pytest

from jlora.errors import JloraError
from jlora.pretrained.source import PretrainedSource
from tests.support.models import encoder_cases as cases


@pytest.fixture
def folder(tmp_path):
    """A folder with the config of a tiny BERT with three named labels; `.rewrite(key=value)` changes it."""
    names = {0: "bad", 1: "fair", 2: "good"}
    config = cases.tiny_config("bert", id2label=names, label2id={name: i for i, name in names.items()})
    config.save_pretrained(tmp_path)
    return tmp_path


def _rewrite(folder, **changes):
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | changes))


def test_a_config_is_read_as_transformers_reads_it(folder):
    transformers = pytest.importorskip("transformers")
    expected = transformers.AutoConfig.from_pretrained(folder).to_dict()
    found = PretrainedSource(folder).config.to_dict()
    for noise in ("_name_or_path", "transformers_version", "dtype"):
        expected.pop(noise, None)
        found.pop(noise, None)
    assert found == expected


def test_overrides_are_set(folder):
    config = PretrainedSource(folder).config_with(hidden_dropout_prob=0.0, problem_type="regression", num_labels=1)
    assert (config.hidden_dropout_prob, config.problem_type, config.num_labels) == (0.0, "regression", 1)


def test_stored_label_names_stay_only_where_their_number_does(folder):
    assert PretrainedSource(folder).config_with(num_labels=3).id2label == {0: "bad", 1: "fair", 2: "good"}
    other = PretrainedSource(folder).config_with(num_labels=2)
    assert other.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert other.label2id == {"LABEL_0": 0, "LABEL_1": 1}


def test_given_label_names_replace_the_stored_ones(folder):
    config = PretrainedSource(folder).config_with(id2label={0: "no", 1: "yes"})
    assert config.num_labels == 2
    assert config.label2id == {"no": 0, "yes": 1}


def test_label_names_that_contradict_num_labels(folder):
    with pytest.raises(JloraError, match="id2label: expected num_labels = 3 names; found 2"):
        PretrainedSource(folder).config_with(num_labels=3, id2label={0: "no", 1: "yes"})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hiden_size": 3}, "hiden_size: expected a key of BertConfig; nearest: hidden_size"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"problem_type": "single_label_classification", "num_labels": 1}, "num_labels > 1"),
    ],
)
def test_overrides_that_no_config_takes(folder, overrides, message):
    with pytest.raises(JloraError, match=message):
        PretrainedSource(folder).config_with(**overrides)


@pytest.mark.parametrize("found", ["t5", None])
def test_an_unsupported_model_type(folder, found):
    _rewrite(folder, model_type=found)
    with pytest.raises(JloraError, match=rf"model_type: expected one of bert, .*roberta; found {found!r}"):
        PretrainedSource(folder).config_with()


def test_code_in_the_folder_is_never_run(folder):
    (folder / "evil.py").write_text("raise SystemExit('ran')\n")
    _rewrite(folder, auto_map={"AutoConfig": "evil.BertConfig"})
    assert type(PretrainedSource(folder).config).__module__.startswith("transformers.")
    for name in ("evil.Config", "org/jina--evil.JinaBertConfig", ["evil.BertConfig"]):
        _rewrite(folder, auto_map={"AutoConfig": name})
        with pytest.raises(
            JloraError, match=r"config\.json: auto_map: AutoConfig: expected a class of transformers' Bert"
        ):
            PretrainedSource(folder).config_with()


@pytest.mark.parametrize(
    ("fields", "method"),
    [
        ({"quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}}, "'bitsandbytes'"),
        ({"quantization_config": {"bits": 4, "group_size": 64}}, "'another library'"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "'another library'"),  # mlx-lm's
    ],
)
def test_a_base_that_was_quantized_elsewhere_is_refused_with_the_one_to_take(fields, method, folder):
    _rewrite(folder, **fields)
    message = (
        rf"{next(iter(fields))}: expected none; found weights quantized by {method}.* Give the 16-bit model .* --base"
    )
    with pytest.raises(JloraError, match=message):
        PretrainedSource(folder).config_with()


def test_a_folder_without_a_config(tmp_path):
    with pytest.raises(JloraError, match=r"expected the folder of a model, found no config\.json"):
        PretrainedSource(tmp_path).config_with()


def test_torch_dtype_in_a_config_brings_no_torch_object(folder):
    _rewrite(folder, torch_dtype="bfloat16")
    assert PretrainedSource(folder).config.dtype is None
