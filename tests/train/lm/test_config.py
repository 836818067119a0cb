"""The schema of train.lm: what it takes, what it refuses, what it shares with train.classify."""

from functools import partial

import pytest
from pydantic import ValidationError

from tests.support.training import config_cases
from train.classify.config import Config
from train.config import dotted_keys, validate
from train.config.command import PROCESSES, SWITCHES
from train.config.run_config import learning_rate_of
from train.lm.config import COMMAND, LMConfig

config = partial(config_cases.config, LMConfig)


def test_every_key_has_a_meaning():
    assert all(field.description for field in dotted_keys.fields(LMConfig).values())
    assert COMMAND.flags.keys() == {*SWITCHES, "preview", "mesh", "chip", *PROCESSES}


def test_keys_of_both_commands_take_the_same_and_what_is_only_of_classifiers_is_not_there():
    ours, theirs = dotted_keys.fields(LMConfig), dotted_keys.fields(Config)
    of_classifiers = {
        "task", "data.test", "data.text_pair", "data.label", "data.label_names", "data.drop_other_labels",
        "data.test_fraction", "train.metric", "new_head",
    }  # fmt: skip
    assert set(theirs) - set(ours) == of_classifiers
    narrower = {"method", "train.learning_rate"}
    for key in (set(ours) & set(theirs)) - narrower:
        assert dotted_keys.describe_field(ours[key]) == dotted_keys.describe_field(theirs[key]), key


def test_the_learning_rate_is_the_methods():
    assert learning_rate_of(config()) == 2e-4
    assert learning_rate_of(config(method="full")) == 2e-5
    assert learning_rate_of(config(train={"learning_rate": {"lora": 1e-3}})) == 1e-3


@pytest.mark.parametrize(
    ("section", "key", "good", "bad"),
    [
        ("data", "format", "sharegpt", "chatml"),
        ("data", "sample_by", "paragraph", "page"),
        ("data", "completion_only_loss", True, 1),
        ("data", "max_length", 4, 3),
        ("data", "too_long", "drop", "ignore"),
        ("data", "packing", True, "yes"),
        ("lora", "init_lora_weights", "gaussian", "loft"),
        ("train", "learning_rate", {"lora": 1e-3}, {"lora": 1e-3, "head": 1e-3}),
        ("samples", "count", 0, -1),
        ("samples", "top_p", 1, 0),
        ("samples", "temperature", 0, -0.1),
        ("samples", "prompt_tokens", 1, 0),
        ("samples", "max_length", 51, 50),
        ("export", "gguf_lora", True, "q8_0"),
    ],
)
def test_values_are_checked(section, key, good, bad):
    config_cases.assert_checked(LMConfig, section, key, good, bad)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"method": "head"}, "method"),
        ({"quantize": "nf8"}, "quantize"),
        ({"method": "full", "quantize": "nf4"}, "quantize: expected null with method: full"),
        ({"lora": {"init_lora_weights": "loftq"}}, "lora.init_lora_weights: loftq needs quantize"),
        (
            {"quantize": "nf4", "lora": {"init_lora_weights": "pissa_niter_4"}},
            "lora.init_lora_weights: expected loftq or one that leaves the base alone",
        ),
        ({"quantize": "int8", "lora": {"init_lora_weights": "olora"}}, "lora.init_lora_weights: .*int8, found olora"),
        ({"lora": {"init_lora_weights": "eva"}}, "lora.init_lora_weights: .*jlora.init_eva"),
        ({"method": "full", "export": {"gguf_lora": True}}, "export.gguf_lora: expected false with method: full"),
        (
            {"export": {"gguf_lora": True}, "lora": {"use_dora": True, "bias": "all"}},
            "export.gguf_lora: .*found lora.use_dora, lora.bias",
        ),
        (
            {"export": {"gguf_lora": True}, "lora": {"modules_to_save": ["lm_head"]}},
            "export.gguf_lora: .*found lora.modules_to_save",
        ),
        (
            {"data": {"train": "t", "format": "text", "completion_only_loss": True}},
            "data.completion_only_loss: expected false or null with data.format: text",
        ),
        (
            {"data": {"train": "t", "format": "alpaca", "chat_template": "c.jinja"}},
            "data.chat_template: expected null with data.format: alpaca",
        ),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(sections, message):
    with pytest.raises(ValidationError, match=message):
        config(**sections)


@pytest.mark.parametrize(
    "sections",
    [
        {"quantize": "nf4", "lora": {"init_lora_weights": "loftq", "use_dora": True, "use_rslora": True}},
        {"quantize": "int8", "lora": {"init_lora_weights": "orthogonal"}},
        {"lora": {"init_lora_weights": "pissa"}, "export": {"gguf_lora": True}},
        {"method": "full", "data": {"train": "t", "packing": True, "too_long": "split"}},
        {"data": {"train": "t", "format": "messages", "completion_only_loss": True, "chat_template": "c.jinja"}},
    ],
)
def test_keys_that_fit_together_are_taken(sections):
    assert config(**sections)


@pytest.mark.parametrize("written", [None, {}, {"count": 0}])
def test_no_samples_unless_they_are_counted(written):
    flat = validate.flatten({"model": "m", "output_dir": "o", "data.train": "t", "samples": written}, LMConfig)
    found, problems = validate.validate(flat, LMConfig)
    assert problems == {}
    assert found.samples.count == 0
