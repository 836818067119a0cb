"""What all training configs share: written and read back, a method's learning rate, what is refused."""

import pytest
import yaml
from pydantic import ValidationError

from jlora.files import yaml12
from tests.support.training.config_cases import assert_checked, config
from train.classify.config import Config
from train.config import dotted_keys
from train.config.run_config import learning_rate_of, steps_of, to_yaml
from train.lm.config import LMConfig


def test_a_written_config_is_read_back_equal():
    odd = config(
        data={"train": ["no", "1e-3"], "label_names": {0: "no", 1: "yes", "007": "bond"}, "text": "null"},
        lora={"from": "runs/a/adapter", "rank_pattern": {"layer.0": 4}, "alpha_pattern": {"query": 0.5}},
        train={"learning_rate": {"lora": 1e-3, "full": 5e-5}, "adam_epsilon": 1e-12},
    )
    assert Config.model_validate(yaml12.parse(to_yaml(odd), "test")) == odd


@pytest.mark.parametrize("schema", [Config, LMConfig])
def test_a_written_config_holds_every_key(schema):
    written = yaml.safe_load(to_yaml(config(schema)))
    sections = dotted_keys.sections(schema)
    names = {f"{section}.{name}" for section in sections for name in written[section]}
    assert names | (set(written) - set(sections)) == set(dotted_keys.fields(schema)) - {"offline"}


@pytest.mark.parametrize("schema", [Config, LMConfig])
def test_a_tilde_is_the_users_home(schema, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    found = config(schema, output_dir="~/runs/a", lora={"from": "~/b/adapter"})
    assert (found.output_dir, found.lora.from_) == ("/home/ann/runs/a", "/home/ann/b/adapter")
    kept = config(schema, output_dir="runs/~/", lora={"from": "./b/"})
    assert (kept.output_dir, kept.lora.from_) == ("runs/~/", "./b/")


def test_a_config_cannot_be_changed():
    with pytest.raises(ValidationError):
        config().seed = 1


@pytest.mark.parametrize("seed", [-1, 2**32, 2**200])
def test_a_seed_of_which_jax_would_drop_bits(seed):
    with pytest.raises(ValidationError, match="seed"):
        config(seed=seed)


@pytest.mark.parametrize("method", ["lora", "full", "head"])
def test_the_learning_rate_is_the_methods(method):
    rates = {"lora": 4e-4, "full": 5e-5, "head": 2.0}
    assert learning_rate_of(config(method=method, train={"learning_rate": rates})) == rates[method]
    assert learning_rate_of(config(method=method, train={"learning_rate": 1})) == 1.0
    assert 0 < learning_rate_of(config(method=method)) < 0.01


@pytest.mark.parametrize("schema", [Config, LMConfig])
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
        ("train", "epochs", 0.5, 0),
        ("train", "batch_size", 1, 1.0),
        ("train", "learning_rate", 1, 0),
        ("train", "learning_rate", 1e-3, float("nan")),
        ("train", "learning_rate", {"lora": 1e-3}, {"lora": 1e-3, "loar": 1e-3}),
        ("train", "loraplus_lr_ratio", 16, 0),
        ("train", "data_seed", 0, -1),
        ("train", "max_grad_norm", 0, -1),
        ("train", "remat", True, 1),
        ("train", "warmup_ratio", 0, "0.1"),
        ("train", "schedule", "linear", "cosin"),
        ("train", "dtype", "bfloat16", "float16"),
        ("train", "adam_beta2", 0.98, 1),
        ("export", "dtype", "float16", "int8"),
        ("hub", "private", False, "no"),
    ],
)
def test_values_are_checked(schema, section, key, good, bad):
    assert_checked(schema, section, key, good, bad)


@pytest.mark.parametrize("schema", [Config, LMConfig])
@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"method": "full", "train": {"learning_rate": {"lora": 1e-3}}}, "train.learning_rate.full: missing"),
        ({"method": "full", "lora": {"from": "a"}}, "lora.from: expected null"),
        ({"method": "full", "export": {"merged": False}}, "export.merged: expected true"),
        ({"method": "full", "train": {"loraplus_lr_ratio": 16}}, "train.loraplus_lr_ratio: expected null"),
        ({"hub": {"push": True}}, "hub.repo: missing"),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(schema, sections, key):
    with pytest.raises(ValidationError, match=key):
        config(schema, **sections)


@pytest.mark.parametrize(
    ("train", "rows", "expected"),
    [
        ({"batch_size": 8, "epochs": 3}, 24, (3, 9)),
        ({"batch_size": 8, "epochs": 3}, 25, (4, 12)),
        ({"batch_size": 8, "epochs": 0.5}, 100, (13, 6)),
        ({"batch_size": 8, "epochs": 0.01}, 24, (3, 1)),
        ({"batch_size": 4, "gradient_accumulation_steps": 4, "epochs": 2}, 24, (2, 4)),
        ({"batch_size": 8, "epochs": 3, "max_steps": 5}, 24, (3, 5)),
        ({"batch_size": 64, "epochs": 1}, 3, (1, 1)),
    ],
)
def test_steps(train, rows, expected):
    assert steps_of(config(train=train), rows) == expected
