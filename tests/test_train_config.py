"""The schema: what it takes, what it refuses, and that a config survives being written and read."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

import jlora
from train import keys, yaml_text
from train.config import Config, LoraSection, learning_rate_of, to_yaml

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
SMALLEST = {"model": "m", "output_dir": "o", "data": {"train": "t"}}


def config(**sections):
    return Config.model_validate({**SMALLEST, **sections})


def test_a_written_config_is_read_back_equal():
    odd = config(
        data={"train": ["no", "1e-3"], "label_names": {0: "no", 1: "yes", "007": "bond"}, "text": "null"},
        lora={"from": "runs/a/adapter", "rank_pattern": {"layer.0": 4}, "alpha_pattern": {"query": 0.5}},
        train={"learning_rate": {"lora": 1e-3, "full": 5e-5}, "adam_epsilon": 1e-12},
    )
    assert Config.model_validate(yaml_text.parse(to_yaml(odd), "test")) == odd


def test_a_written_config_holds_every_key():
    written = yaml.safe_load(to_yaml(config()))
    names = {f"{section}.{name}" for section in keys.sections() for name in written[section]}
    assert names | (set(written) - set(keys.sections())) == set(keys.fields()) - {"offline"}


def test_a_config_cannot_be_changed():
    with pytest.raises(ValidationError):
        config().seed = 1


def test_the_adapter_has_the_fields_and_defaults_of_the_library():
    library = {field.name: field for field in dataclasses.fields(jlora.LoraConfig)}
    for name, value in LoraSection().model_dump(exclude={"from_"}).items():
        field = library[name]
        assert value == (field.default if field.default is not dataclasses.MISSING else field.default_factory()), name


def test_the_adapter_has_the_defaults_of_peft():
    peft = pytest.importorskip("peft").LoraConfig()
    for name, value in LoraSection().model_dump(exclude={"from_"}).items():
        assert value == getattr(peft, name), name


@pytest.mark.parametrize("method", ["lora", "full", "head"])
def test_the_learning_rate_is_the_methods(method):
    rates = {"lora": 4e-4, "full": 5e-5, "head": 2.0}
    assert learning_rate_of(config(method=method, train={"learning_rate": rates})) == rates[method]
    assert learning_rate_of(config(method=method, train={"learning_rate": 1})) == 1.0
    assert 0 < learning_rate_of(config(method=method)) < 0.01


@pytest.mark.parametrize(
    ("section", "key", "good", "bad"),
    [
        ("lora", "r", 1, 0),
        ("lora", "lora_dropout", 0, 1),
        ("lora", "lora_alpha", 0.5, 0),
        ("lora", "layers_to_transform", [0], [-1]),
        ("lora", "rank_pattern", {"a": 1}, {"a": 0}),
        ("lora", "init_lora_weights", "gaussian", "pisa"),
        ("lora", "init_lora_weights", "pissa_niter_4", "pissa_niter_"),
        ("lora", "init_lora_weights", "olora", 1),
        ("lora", "use_dora", True, "yes"),
        ("lora", "bias", "lora_only", "some"),
        ("lora", "trainable_token_indices", [3], [-1]),
        ("lora", "trainable_token_indices", {"word_embeddings": [3]}, 3),
        ("data", "max_rows", 1, 0),
        ("data", "validation_fraction", 0.5, 1),
        ("data", "label_names", ["a"], [1]),
        ("train", "epochs", 0.5, 0),
        ("train", "batch_size", 1, 1.0),
        ("train", "learning_rate", 1, 0),
        ("train", "learning_rate", 1e-3, float("nan")),
        ("train", "learning_rate", {"lora": 1e-3}, {"lora": 1e-3, "loar": 1e-3}),
        ("train", "max_grad_norm", 0, -1),
        ("train", "remat", True, 1),
        ("train", "warmup_ratio", 0, "0.1"),
        ("train", "dtype", "bfloat16", "float16"),
        ("train", "adam_beta2", 0.98, 1),
        ("export", "dtype", "float16", "int8"),
        ("hub", "private", False, "no"),
    ],
)
def test_values_are_checked(section, key, good, bad):
    base = SMALLEST.get(section, {})
    assert getattr(getattr(config(**{section: {**base, key: good}}), section), key) == good
    with pytest.raises(ValidationError, match=f"{section}.{key}"):
        config(**{section: {**base, key: bad}})


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"method": "head", "train": {"learning_rate": {"lora": 1e-3}}}, "train.learning_rate.head: missing"),
        ({"method": "full", "lora": {"from": "a"}}, "lora.from: expected null"),
        ({"hub": {"push": True}}, "hub.repo: missing"),
        ({"lora": {"init_lora_weights": "eva"}}, "lora.init_lora_weights: .*jlora.init_eva"),
        ({"lora": {"init_lora_weights": "lora_ga"}}, "lora.init_lora_weights: .*jlora.init_lora_ga"),
        (
            {"data": {"train": "t", "drop_other_labels": True, "label_names": ["a"]}},
            "data.drop_other_labels: ",
        ),
        (
            {"task": "regression", "data": {"train": "t", "label_names": ["a"]}},
            "data.label_names: expected null",
        ),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(sections, key):
    with pytest.raises(ValidationError, match=key):
        config(**sections)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_key_has_a_meaning_and_shipped_configs_say_only_what_counts(path):
    assert all(field.description for field in keys.fields().values())
    text = path.read_text()
    assert text.startswith("# ")
    assert f"--config configs/{path.name}" in text
    assert yaml_text.read_file(path)["output_dir"] == f"runs/{path.stem}"
