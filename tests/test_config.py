"""LoraConfig: PEFT's names and files; impossible values and what is not supported are named."""

from __future__ import annotations

import json

import pytest

from jlora.config import LoraConfig, read_config, write_config
from jlora.errors import JloraError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("r", 0),
        ("r", -1),
        ("r", 2.5),
        ("r", "8"),
        ("rank_pattern", {"query": 0}),
        ("rank_pattern", {"query": None}),
        ("lora_alpha", "16"),
        ("alpha_pattern", {"query": None}),
        ("lora_dropout", -0.1),
        ("lora_dropout", 1.0),
        ("lora_dropout", "0.1"),
        ("init_lora_weights", "pissa"),
        ("modules_to_save", "classifier"),
        ("target_modules", "*query"),
        ("exclude_modules", "(query"),
        ("rank_pattern", {"[query": 2}),
        ("alpha_pattern", {"?": 2}),
    ],
)
def test_impossible_values_name_the_field(field, value):
    with pytest.raises(JloraError, match=rf"^LoraConfig\.{field}.*: expected .*, found "):
        LoraConfig(**{field: value})


def test_layers_to_transform_needs_a_list_of_targets():
    with pytest.raises(JloraError, match=r"^LoraConfig\.layers_to_transform: expected null where target_modules is"):
        LoraConfig(target_modules="all-linear", layers_to_transform=[0])
    assert LoraConfig(target_modules=["query"], layers_to_transform=[0]).layers_to_transform == [0]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ()),
        ({"task_type": "SEQ_CLS"}, ("classifier", "score")),
        ({"task_type": "SEQ_CLS", "modules_to_save": []}, ()),
        ({"task_type": "SEQ_CLS", "modules_to_save": ["pooler"]}, ("pooler",)),
        ({"modules_to_save": ["pooler"]}, ("pooler",)),
    ],
)
def test_what_is_trained_whole(fields, expected):
    assert LoraConfig(**fields).trained_whole == expected


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
    use_rslora=True,
    init_lora_weights="gaussian",
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


def test_peft_reads_ours_and_we_read_pefts(tmp_path):
    peft = pytest.importorskip("peft")
    write_config(tmp_path, CONFIG, "a/base", [])
    theirs = peft.PeftConfig.from_pretrained(tmp_path)
    assert isinstance(theirs, peft.LoraConfig)
    for name in ("r", "lora_alpha", "lora_dropout", "rank_pattern", "alpha_pattern", "layers_to_transform"):
        assert getattr(theirs, name) == getattr(CONFIG, name), name
    for name in ("use_rslora", "init_lora_weights", "task_type"):
        assert getattr(theirs, name) == getattr(CONFIG, name), name
    for name in ("target_modules", "exclude_modules", "modules_to_save"):
        assert set(getattr(theirs, name)) == set(getattr(CONFIG, name)), name
    theirs.save_pretrained(tmp_path)
    ours = read_config(tmp_path)
    assert sorted(ours.target_modules) == sorted(CONFIG.target_modules)
    assert (ours.r, ours.lora_alpha, ours.rank_pattern) == (CONFIG.r, CONFIG.lora_alpha, CONFIG.rank_pattern)


def test_every_field_of_pefts_is_ours_or_refused_where_it_is_on(tmp_path):
    """PEFT's defaults are read; each of its fields that we do not know is an error once it is set."""
    peft = pytest.importorskip("peft")
    peft.LoraConfig(target_modules=["query"]).save_pretrained(tmp_path)
    assert read_config(tmp_path) == LoraConfig(target_modules=["query"])
    path = tmp_path / "adapter_config.json"
    fields = json.loads(path.read_text())
    for name in ("use_dora", "lora_bias", "trainable_token_indices", "layer_replication", "target_parameters"):
        assert name in fields
        path.write_text(json.dumps(fields | {name: [[0, 1]]}))
        with pytest.raises(JloraError, match=rf"adapter_config\.json: {name}: expected it off or absent \(not supp"):
            read_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"peft_type": "LORA", "use_dora": true}', "use_dora: expected it off or absent .*, found True"),
        ('{"peft_type": "LORA", "bias": "all"}', "bias: expected it off or absent .*, found 'all'"),
        ('{"peft_type": "LORA", "from_the_future": 3}', "from_the_future: expected it off or absent"),
        ('{"peft_type": "IA3"}', "peft_type: expected LORA, found 'IA3'"),
        ('{"r": 8}', "peft_type: expected LORA, found None"),
        ("[1, 2]", r"peft_type: expected LORA, found \[1, 2\]"),
        ('{"peft_type": "LORA", "r": 0}', r"LoraConfig\.r: expected an integer of at least 1, found 0"),
        (
            '{"peft_type": "LORA", "init_lora_weights": "pissa"}',
            "LoraConfig.init_lora_weights: expected .*, found 'pissa'",
        ),
        ('{"peft_type": "LORA"', "expected JSON, found "),
        (b"\xff\xfe\xff", "expected JSON, found "),
    ],
)
def test_files_that_are_not_supported_are_named(text, message, tmp_path):
    (tmp_path / "adapter_config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(JloraError, match=rf"^{tmp_path}/adapter_config\.json: {message}"):
        read_config(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(JloraError, match=rf"^{tmp_path}/adapter_config\.json: .*found no such file"):
        read_config(tmp_path)
