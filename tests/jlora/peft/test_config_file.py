"""adapter_config.json: written for PEFT, read from it; what is not supported is named."""

from __future__ import annotations

import dataclasses
import json
from types import MappingProxyType

import jax
import numpy as np
import pytest

from jlora.errors import FileError, JloraError
from jlora.lora.config import LoraConfig
from jlora.peft import config_file
from jlora.peft.config_file import read_base_name, read_config, unknown_fields, write_config

CONFIG = LoraConfig(
    r=4,
    lora_alpha=12,
    lora_dropout=0.1,
    target_modules=["query", "dense"],
    exclude_modules=["pooler.dense"],
    modules_to_save=["classifier"],
    rank_pattern={"query": 2},
    alpha_pattern={"layer.0.*": 3.5},
    layers_to_transform=[0, 2],
    layers_pattern=["layer"],
    use_rslora=True,
    use_dora=True,
    init_lora_weights="gaussian",
    bias="lora_only",
    trainable_token_indices={"word_embeddings": [3, 1]},
    ensure_weight_tying=True,
    task_type="SEQ_CLS",
)


def test_written_then_read_is_the_same(tmp_path):
    write_config(tmp_path, CONFIG, "a/base", ["bert.query"])
    assert read_config(tmp_path) == CONFIG
    text = (tmp_path / "adapter_config.json").read_text()
    fields = json.loads(text)
    assert list(fields) == sorted(fields)
    assert (fields["peft_type"], fields["base_model_name_or_path"]) == ("LORA", "a/base")


def test_sets_are_written_as_lists(tmp_path):
    write_config(tmp_path, LoraConfig(target_modules={"value", "query"}), None, [])
    assert read_config(tmp_path).target_modules == ["query", "value"]


def test_all_linear_is_written_as_the_names_it_meant(tmp_path):
    write_config(tmp_path, LoraConfig(target_modules="all-linear"), None, ["bert.query", "bert.value"])
    assert read_config(tmp_path).target_modules == ["bert.query", "bert.value"]


@pytest.mark.parametrize(
    "value", ["pissa", "pissa_niter_4", "olora", "eva", "lora_ga", "orthogonal", jax.nn.initializers.normal()]
)
def test_an_initialization_that_peft_would_run_again_is_written_as_true(value, tmp_path):
    """PiSSA's and its like would take the base apart a second time; orthogonal refuses odd ranks."""
    write_config(tmp_path, LoraConfig(init_lora_weights=value), None, ["query"])
    assert read_config(tmp_path).init_lora_weights is True


@pytest.mark.parametrize("value", [True, False, "gaussian"])
def test_other_initializations_are_written_as_they_are(value, tmp_path):
    write_config(tmp_path, LoraConfig(init_lora_weights=value), None, ["query"])
    assert read_config(tmp_path).init_lora_weights == value


def test_numbers_and_mappings_of_any_kind_are_written(tmp_path):
    config = LoraConfig(alpha_pattern=MappingProxyType({"query": 2.0}), trainable_token_indices=(np.int64(3), 1))
    write_config(tmp_path, config, None, ["query"])
    read = read_config(tmp_path)
    assert (read.alpha_pattern, read.trainable_token_indices) == ({"query": 2.0}, [3, 1])


def test_peft_reads_ours_and_we_read_pefts(tmp_path, recwarn):
    peft = pytest.importorskip("peft")
    write_config(tmp_path, CONFIG, "a/base", [])
    theirs = peft.PeftConfig.from_pretrained(tmp_path)
    assert isinstance(theirs, peft.LoraConfig)
    for name in ("r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "layers_to_transform"):
        assert getattr(theirs, name) == getattr(CONFIG, name), name
    for name in ("use_rslora", "use_dora", "init_lora_weights", "bias", "ensure_weight_tying", "task_type"):
        assert getattr(theirs, name) == getattr(CONFIG, name), name
    assert theirs.trainable_token_indices == CONFIG.trainable_token_indices
    assert [str(warning.message) for warning in recwarn] == []
    for name in ("target_modules", "exclude_modules", "modules_to_save"):
        assert set(getattr(theirs, name)) == set(getattr(CONFIG, name)), name
    theirs.save_pretrained(tmp_path)
    ours = read_config(tmp_path)
    assert sorted(ours.target_modules) == sorted(CONFIG.target_modules)
    unordered = ("target_modules", "exclude_modules")
    fields = {name: sorted(getattr(ours, name)) for name in unordered}
    assert dataclasses.replace(ours, **fields) == dataclasses.replace(
        CONFIG, **{name: sorted(getattr(CONFIG, name)) for name in unordered}
    )


def test_every_field_of_pefts_is_ours_or_refused_where_it_is_on(tmp_path):
    """PEFT's defaults are read; each of its fields that has another function is an error once it is set."""
    peft = pytest.importorskip("peft")
    peft.LoraConfig(target_modules=["query"]).save_pretrained(tmp_path)
    assert read_config(tmp_path) == LoraConfig(target_modules=["query"])
    path = tmp_path / "adapter_config.json"
    fields = json.loads(path.read_text())
    read = {field.name for field in dataclasses.fields(LoraConfig)} | config_file._NEUTRAL | config_file._TRANSLATED
    assert fields.keys() - read == config_file._OTHER_FUNCTIONS
    for name in config_file._OTHER_FUNCTIONS:
        path.write_text(json.dumps(fields | {name: [[0, 1]]}))
        with pytest.raises(JloraError, match=rf"adapter_config\.json: {name}: expected it off or absent \(not supp"):
            read_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"peft_type": "LORA", "use_qalora": true}', "use_qalora: expected it off or absent .*, found True"),
        ('{"peft_type": "LORA", "lora_bias": "yes"}', "lora_bias: expected true or false, found 'yes'"),
        ('{"peft_type": "LORA", "bias": "vera_only"}', r"LoraConfig\.bias: expected none, all or lora_only, found 've"),
        ('{"peft_type": "IA3"}', "peft_type: expected LORA, found 'IA3', which is not read.*merge_and_unload"),
        (
            '{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}',
            "expected PEFT's adapter configuration, found a model's config.json .*'llama'.*Copy the file again from",
        ),
        (
            '{"peft_type": "LORA", "target_parameters": ["q_proj.weight", "experts.down_proj"]}',
            r"target_parameters: expected weights of linear layers, .*, found \['experts\.down_proj'\]\. Merge the",
        ),
        (
            '{"peft_type": "LORA", "target_parameters": ["q_proj.weight"], "layers_to_transform": [1]}',
            "layers_to_transform: expected null together with target_parameters, .* as target_modules",
        ),
        (
            '{"peft_type": "LORA", "target_parameters": ["q_proj.weight"], "alpha_pattern": {"q_proj": 24}}',
            r"alpha_pattern: expected none together with target_parameters, .*found \{'q_proj': 24\}. Name the modules",
        ),
        ("[1, 2]", "expected a JSON object, .*; found a list"),
        ('{"r": 4, "lora_alpha": 8}', r'expected "peft_type": "LORA", found r, lora_alpha\. If PEFT wrote the'),
        ('{"peft_type": "P_TUNING"}', "peft_type: expected LORA, found 'P_TUNING', .* nothing can be merged. Use it"),
        ('{"peft_type": "LORA", "r": "16"}', "r: expected an integer .*, found the text '16'; write it without quotes"),
        ('{"peft_type": "LORA", "r": "many"}', "r: expected an integer of at most 65536, found 'many'$"),
        ('{"peft_type": "LORA", "r": 0}', r"LoraConfig\.r: expected an integer of at least 1, found 0"),
        (
            '{"peft_type": "LORA", "init_lora_weights": "lora_ga"}',
            "init_lora_weights: expected true, .*, found 'lora_ga'. .* changed the base's weights.*initial_model",
        ),
        ('{"peft_type": "LORA", "init_lora_weights": "loftq"}', "init_lora_weights: expected true, .*, found 'loftq'"),
        ('{"peft_type": "LORA", "init_lora_weights": "pissa_niter_4"}', "init_lora_weights: .*, found 'pissa_niter_4'"),
        ('{"peft_type": "LORA"', "expected JSON; found: "),
        (b"\xff\xfe\xff", "expected JSON; found: "),
    ],
)
def test_files_that_are_not_supported_are_named(text, message, tmp_path):
    (tmp_path / "adapter_config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(JloraError, match=rf"^{tmp_path}/adapter_config\.json: {message}"):
        read_config(tmp_path)


def test_fields_that_peft_does_not_have_are_named_and_not_used(tmp_path):
    fields = {"peft_type": "LORA", "from_the_future": 3, "unsloth_fixed": True, "off": None, "r": 3}
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    assert read_config(tmp_path) == LoraConfig(r=3)
    assert unknown_fields(fields) == ["from_the_future", "unsloth_fixed"]


@pytest.mark.parametrize(
    ("modules", "expected"),
    [
        (None, ["q_proj", "layers.1.up"]),
        (["v_proj"], ["v_proj", "q_proj", "layers.1.up"]),
        (".*v_proj", r"(?:.*v_proj)|(?:.*\.)?(?:q_proj|layers\.1\.up)"),
    ],
)
def test_parameters_of_linear_layers_are_modules(modules, expected, tmp_path):
    parameters = ["q_proj.weight", "layers.1.up.weight"]
    fields = {"peft_type": "LORA", "target_modules": modules, "target_parameters": parameters}
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    assert read_config(tmp_path).target_modules == expected


@pytest.mark.parametrize(("bias", "read"), [("none", "lora_only"), ("lora_only", "lora_only"), ("all", "all")])
def test_a_bias_of_the_update_is_one_of_the_module(bias, read, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "bias": bias, "lora_bias": True}))
    assert read_config(tmp_path).bias == read


@pytest.mark.parametrize(
    ("value", "read"),
    [("eva", "eva"), ("mica", True), ("Gaussian", "gaussian"), (False, False), ("pissa", "pissa"), ("OLoRA", "olora")],
)
def test_initializations_that_can_be_computed_again_or_change_nothing_are_read(value, read, tmp_path):
    fields = {"peft_type": "LORA", "init_lora_weights": value, "eva_config": {"rho": 2.0}, "rank_pattern": None}
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields | {"fan_in_fan_out": True}))
    assert read_config(tmp_path).init_lora_weights == read


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(
        JloraError,
        match=rf"^{tmp_path}: expected the folder of an adapter .*, found no adapter_config.json\. It is empty$",
    ):
        read_config(tmp_path)


@pytest.mark.parametrize(("name", "read"), [("a/base", "a/base"), (None, None), ("", None)])
def test_the_name_of_the_base(name, read, tmp_path):
    write_config(tmp_path, CONFIG, name, [])
    assert read_base_name(tmp_path) == read


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"])
def test_a_task_whose_head_is_not_in_the_file_is_not_told_to_peft(task, tmp_path):
    """PEFT would look for the head's weights, and find none."""
    for modules, expected in ((None, task), ([], None), (["pooler"], None)):
        write_config(tmp_path, LoraConfig(task_type=task, modules_to_save=modules), None, ["query"])
        assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == expected


def test_a_file_a_missing_folder_and_the_folder_of_a_run_say_what_to_give(tmp_path):
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(b"x")
    with pytest.raises(FileError, match=rf"found a file\. Give the folder that it is in: {tmp_path}$"):
        read_config(file)
    with pytest.raises(FileError, match=r"found no such folder; nearest: adapter_model\.safetensors in"):
        read_config(tmp_path / "adapter_model")
    for name in ("config.yaml", "manifest.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(FileError, match=r"of a run without adapter/, .*: finish it with --resume$"):
        read_config(tmp_path)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(FileError, match=rf"This is the folder of a run: give {tmp_path / 'adapter'}$"):
        read_config(tmp_path)
