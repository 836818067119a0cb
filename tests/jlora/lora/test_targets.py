"""Which modules a configuration means: PEFT's own matching is the oracle."""

from __future__ import annotations

import itertools

import pytest

from jlora.errors import JloraError
from jlora.lora.config import LoraConfig
from jlora.lora.targets import (
    check_other_modules,
    check_targets,
    is_all_linear,
    is_target,
    is_trained_whole,
    matches,
    pattern_value,
)
from jlora.models.registry import abstract_base, build
from jlora.tree.leaf_paths import leaves_by_path
from jlora.tree.module_names import is_stacked, module_names
from tests.support.models import encoder_cases


def _names(family):
    leaves = leaves_by_path(abstract_base(build(encoder_cases.tiny_config(family)))).items()
    lists = (module_names(path, leaf.shape[0] if is_stacked(path) else None) for path, leaf in leaves)
    return sorted(set(itertools.chain(*lists)))


NAMES = _names("bert")
TARGETS = [
    ["query"],
    ["query", "value"],
    ["output.dense"],
    ["dense"],
    ["uery"],
    ["bert.pooler.dense"],
    ["bert.encoder.layer.1.output.dense", "key"],
    ["word_embeddings", "classifier"],
    ".*query",
    "query",
    r".*\.(query|key|value)",
    r".*layer\.1\..*dense",
    ".*",
]
OTHERS = [
    {},
    {"exclude_modules": ["attention.output.dense", "key"]},
    {"exclude_modules": r".*layer\.0\..*"},
    {"exclude_modules": "dense"},
    {"layers_to_transform": 1},
    {"layers_to_transform": [0]},
    {"layers_to_transform": []},
    {"layers_to_transform": [1], "layers_pattern": "layer"},
    {"layers_to_transform": [0], "layers_pattern": ["h", "la.er"]},
    {"layers_to_transform": 0, "layers_pattern": "blocks"},
    {"modules_to_save": ["classifier", "score"]},
    {"modules_to_save": ["pooler"]},
]


@pytest.mark.parametrize("others", OTHERS, ids=str)
@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_targets_are_pefts(targets, others):
    peft = pytest.importorskip("peft")
    from peft.tuners.tuners_utils import check_target_module_exists

    if "layers_to_transform" in others and isinstance(targets, str):
        with pytest.raises(ValueError, match="layers_to_transform"):
            peft.LoraConfig(target_modules=targets, **others)
        with pytest.raises(JloraError, match="layers_to_transform"):
            LoraConfig(target_modules=targets, **others)
        return
    ours, theirs = (config(target_modules=targets, **others) for config in (LoraConfig, peft.LoraConfig))
    found = [name for name in NAMES if is_target(ours, name)]
    assert found == [name for name in NAMES if check_target_module_exists(theirs, name)]


@pytest.mark.parametrize(
    "patterns",
    [{"query": 1}, {"uery": 1}, {r"layer\.1\..*": 1, "dense": 2}, {"output.dense": 1, "dense": 2}, {"query|key": 1}],
    ids=str,
)
def test_values_by_pattern_are_pefts(patterns):
    pytest.importorskip("peft")
    from peft.utils.other import get_pattern_key

    for name in NAMES:
        assert pattern_value(patterns, name, 7) == patterns.get(get_pattern_key(patterns, name), 7)


def test_all_linear_matches_every_name_but_those_left_out():
    config = LoraConfig(target_modules="All-Linear", exclude_modules=["query"], task_type="SEQ_CLS")
    assert is_all_linear(config)
    left_out = [name for name in NAMES if not is_target(config, name)]
    assert left_out == [name for name in NAMES if name.endswith((".query", "classifier"))]


def test_what_is_trained_whole_lies_in_a_module_whose_name_ends_so():
    config = LoraConfig(task_type="SEQ_CLS")
    for name in ("classifier", "classifier.dense", "classifier.out_proj", "pre_classifier", "model.score"):
        assert is_trained_whole(config, name)
    for name in ("classifiers", "bert.pooler.dense", "scores.dense"):
        assert not is_trained_whole(config, name)
    assert not is_trained_whole(LoraConfig(), "classifier")


def test_a_string_must_match_the_whole_name_and_a_list_its_last_parts():
    assert matches("a.*c", "a.b.c")
    assert not matches("b.c", "a.b.c")
    assert matches(["b.c"], "a.b.c")
    assert matches(["a.b.c"], "a.b.c")
    assert not matches([".c", "xb.c", "b"], "a.b.c")


def _error(check, names=NAMES, **fields):
    with pytest.raises(JloraError) as caught:
        check(LoraConfig(**fields), names)
    return str(caught.value)


def test_an_entry_that_matches_nothing_comes_with_the_nearest_and_all_names():
    message = _error(check_targets, target_modules=["query", "valeu"])
    assert message.startswith("LoraConfig.target_modules: expected an entry that matches a module, found 'valeu'")
    first, second = message.split("\n")
    assert "nearest: " in first
    assert "value" in first
    listed = second.removeprefix("There are: ").split(", ")
    assert "attention.self.query" in listed
    assert len(listed) == len(set(listed)), "each name once, not once a layer"
    assert len(message.splitlines()) < 25


def test_a_bare_regex_is_told_that_it_must_match_the_whole_name():
    message = _error(check_targets, target_modules="query|output")
    assert "found 'query|output'; a string must match the whole name" in message
    assert '".*(query|output).*"' in message
    check_targets(LoraConfig(target_modules=".*(query|output).*"), NAMES)


def test_targets_must_be_given():
    assert "LoraConfig.target_modules: expected names of modules" in _error(check_targets)


def test_targets_that_are_all_left_out():
    message = _error(check_targets, target_modules=["query"], exclude_modules=["query"])
    assert message.startswith("LoraConfig.exclude_modules: expected it to leave a target of target_modules, found ['qu")
    message = _error(check_targets, target_modules=["query"], modules_to_save=["query"])
    assert message.startswith("LoraConfig.modules_to_save: expected it to leave a target of target_modules")
    message = _error(check_targets, target_modules=["query"], exclude_modules=["query"], modules_to_save=["query"])
    assert "expected a module that is not left out by another field" in message


@pytest.mark.parametrize("layers", [[5], 5, [0, 5], [1, 0, 5]])
def test_a_layer_that_the_model_does_not_have(layers):
    message = _error(check_targets, target_modules=["query"], layers_to_transform=layers)
    assert message == (
        "LoraConfig.layers_to_transform: expected layers that have a module of target_modules, 0 to 1, found 5"
    )


def test_a_list_of_layers_that_no_target_is_in():
    message = _error(check_targets, target_modules=["query"], layers_to_transform=[0], layers_pattern="h")
    assert message.startswith("LoraConfig.layers_pattern: expected the name of the list of layers in ")
    assert "found 'h', with which it has no number" in message


def test_a_head_alone_must_be_there():
    message = _error(check_other_modules, ["query"], target_modules=["query"], modules_to_save=["score"])
    assert message.startswith("LoraConfig.modules_to_save: expected an entry that ends a module's name, found 'score'")


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_hits_no_target(field):
    message = _error(check_targets, target_modules=["query"], **{field: {"query": 2, "value": 4}})
    assert message.startswith(f"LoraConfig.{field}: expected a pattern that matches an adapted module, found 'value'")


@pytest.mark.parametrize(
    ("field", "value"),
    [("exclude_modules", ["qury"]), ("exclude_modules", "query"), ("modules_to_save", ["pooler", "clasifier"])],
)
def test_modules_left_out_or_saved_must_be_there(field, value):
    message = _error(check_other_modules, target_modules=["query"], **{field: value})
    assert message.startswith(f"LoraConfig.{field}: expected an entry")
    assert repr(value if isinstance(value, str) else value[-1]) in message


def test_the_heads_that_peft_lists_by_itself_need_not_be_there():
    check_other_modules(LoraConfig(target_modules=["query"], modules_to_save=["classifier", "score"]), NAMES)
    check_other_modules(LoraConfig(target_modules=["query"], task_type="SEQ_CLS"), ["query"])


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_the_usual_targets_of_each_family_are_there(family):
    targets = {"distilbert": ["q_lin", "v_lin"]}.get(family, ["query", "value"])
    check_targets(LoraConfig(target_modules=targets), _names(family))
