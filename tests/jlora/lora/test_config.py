"""LoraConfig: PEFT's names; impossible values are named."""

from __future__ import annotations

import math

import pytest

from jlora.errors import JloraError
from jlora.lora.config import LoraConfig


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
        ("lora_alpha", math.inf),
        ("alpha_pattern", {"query": math.nan}),
        ("alpha_pattern", {"query": None}),
        ("lora_dropout", -0.1),
        ("lora_dropout", 1.0),
        ("lora_dropout", "0.1"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "pissa_niter_"),
        ("bias", "some"),
        ("task_type", "CLS"),
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


def test_the_name_of_a_list_of_layers_needs_their_numbers():
    with pytest.raises(JloraError, match=r"^LoraConfig\.layers_pattern: expected null where layers_to_transform is"):
        LoraConfig(target_modules=["query"], layers_pattern="layers")
    assert LoraConfig(target_modules=["query"], layers_pattern="h", layers_to_transform=[0]).layer_lists == ("h",)
    assert LoraConfig(layers_pattern=["h", "layers"], layers_to_transform=0).layer_lists == ("h", "layers")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ()),
        ({"task_type": "SEQ_CLS"}, ("classifier", "score")),
        ({"task_type": "SEQ_CLS", "modules_to_save": []}, ()),
        ({"task_type": "SEQ_CLS", "modules_to_save": ["pooler"]}, ("pooler",)),
        ({"modules_to_save": ["pooler"]}, ("pooler",)),
        ({"task_type": "TOKEN_CLS"}, ("classifier", "score")),
        ({"task_type": "QUESTION_ANS"}, ("qa_outputs",)),
        ({"task_type": "CAUSAL_LM"}, ()),
    ],
)
def test_what_is_trained_whole(fields, expected):
    assert LoraConfig(**fields).trained_whole == expected
