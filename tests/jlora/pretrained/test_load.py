"""`load_config` and `load_base`: overrides, labels, and folders that are no model."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import pytest

from jlora.errors import JloraError
from jlora.pretrained.load import example_batch, load_base, load_config, save_base, stop_ids
from tests.support.models import decoder_cases
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
    found = load_config(str(folder)).to_dict()
    for noise in ("_name_or_path", "transformers_version", "dtype"):
        expected.pop(noise, None)
        found.pop(noise, None)
    assert found == expected


def test_overrides_are_set(folder):
    config = load_config(str(folder), hidden_dropout_prob=0.0, problem_type="regression", num_labels=1)
    assert (config.hidden_dropout_prob, config.problem_type, config.num_labels) == (0.0, "regression", 1)


def test_stored_label_names_stay_only_where_their_number_does(folder):
    assert load_config(str(folder), num_labels=3).id2label == {0: "bad", 1: "fair", 2: "good"}
    other = load_config(str(folder), num_labels=2)
    assert other.id2label == {0: "LABEL_0", 1: "LABEL_1"}
    assert other.label2id == {"LABEL_0": 0, "LABEL_1": 1}


def test_given_label_names_replace_the_stored_ones(folder):
    config = load_config(str(folder), id2label={0: "no", 1: "yes"})
    assert config.num_labels == 2
    assert config.label2id == {"no": 0, "yes": 1}


def test_label_names_that_contradict_num_labels(folder):
    with pytest.raises(JloraError, match="id2label: expected num_labels = 3 names; found 2"):
        load_config(str(folder), num_labels=3, id2label={0: "no", 1: "yes"})


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
        load_config(str(folder), **overrides)


@pytest.mark.parametrize("found", ["t5", None])
def test_an_unsupported_model_type(folder, found):
    _rewrite(folder, model_type=found)
    with pytest.raises(JloraError, match=rf"model_type: expected one of bert, .*roberta; found {found!r}"):
        load_config(str(folder))


def test_code_in_the_folder_is_never_run(folder):
    (folder / "evil.py").write_text("raise SystemExit('ran')\n")
    _rewrite(folder, auto_map={"AutoConfig": "evil.BertConfig"})
    assert type(load_config(str(folder))).__module__.startswith("transformers.")
    for name in ("evil.Config", "org/jina--evil.JinaBertConfig", ["evil.BertConfig"]):
        _rewrite(folder, auto_map={"AutoConfig": name})
        with pytest.raises(
            JloraError, match=r"config\.json: auto_map: AutoConfig: expected a class of transformers' Bert"
        ):
            load_config(str(folder))


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
        load_config(str(folder))


def test_a_folder_without_a_config(tmp_path):
    with pytest.raises(JloraError, match=r"config.json: expected a JSON file; found none"):
        load_config(str(tmp_path))


def test_torch_dtype_in_a_config_brings_no_torch_object(folder):
    _rewrite(folder, torch_dtype="bfloat16")
    assert load_config(str(folder)).dtype is None


def test_load_base_composes_config_module_and_weights(tmp_path):
    oracle = cases.torch_classifier(cases.tiny_config("bert"), "")
    model, base = cases.load_saved(
        oracle,
        tmp_path,
        num_labels=4,
        key=jax.random.key(0),
        dtype=jnp.bfloat16,
        param_dtype=jnp.bfloat16,
        remat=True,
        hidden_act="relu",
    )
    assert (model.dtype, model.remat, model.config.hidden_act) == (jnp.bfloat16, True, "relu")
    assert {leaf.dtype for leaf in jax.tree.leaves(base)} == {jnp.dtype(jnp.bfloat16)}
    logits = jax.eval_shape(model.apply, base, example_batch(model.config))
    assert (logits.shape, logits.dtype) == ((1, 4), jnp.float32)


def test_label_names_go_round(tmp_path):
    oracle = cases.torch_classifier(cases.tiny_config("distilbert"))
    names = {0: "no", 1: "yes"}
    model, base = cases.load_saved(oracle, tmp_path / "in", id2label=names, problem_type="single_label_classification")
    save_base(tmp_path / "out", model, base)
    again, _ = load_base(str(tmp_path / "out"))
    assert again.config.id2label == names
    assert again.config.problem_type == "single_label_classification"


def test_a_merged_model_stops_where_the_original_did(tmp_path):
    transformers = pytest.importorskip("transformers")
    oracle = decoder_cases.torch_decoder(decoder_cases.tiny_decoder("llama", eos_token_id=2, bos_token_id=1))
    oracle.generation_config = transformers.GenerationConfig(eos_token_id=[2, 7], bos_token_id=1, pad_token_id=0)
    model, base = decoder_cases.load_saved(oracle, tmp_path / "in")
    assert stop_ids(model.config) == (2, 7)
    save_base(tmp_path / "out", model, base)
    found = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert (found.eos_token_id, found.bos_token_id, found.pad_token_id) == ([2, 7], 1, 0)
    assert stop_ids(load_base(str(tmp_path / "out"))[0].config) == (2, 7)


@pytest.mark.parametrize(("eos", "expected"), [(None, ()), (3, (3,)), ([3, 4], (3, 4))])
def test_stop_ids_without_a_file_of_their_own_are_the_configs(tmp_path, eos, expected):
    decoder_cases.tiny_decoder("llama", eos_token_id=eos).save_pretrained(tmp_path)
    assert stop_ids(load_config(str(tmp_path))) == expected
    assert stop_ids(load_config(str(tmp_path), eos_token_id=9)) == (9,)


def test_a_refused_config_is_refused_before_weights_are_opened(folder):
    _rewrite(folder, position_embedding_type="relative_key")
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(JloraError, match="position_embedding_type: expected 'absolute'; found 'relative_key'"):
        load_base(str(folder))
