"""From a config to a module: the table of families, refused configs, abstract trees."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jlora.errors import JloraError
from jlora.models.registry import FAMILIES, abstract_base, build, default_targets, example_batch, family
from tests.support.models import encoder_cases as cases
from train.lm.default_targets import trainer_targets


@pytest.mark.parametrize("name", FAMILIES)
def test_models_have_the_names_of_their_hugging_face_classes_and_pefts_targets(name):
    auto = pytest.importorskip("transformers.models.auto.modeling_auto")
    constants = pytest.importorskip("peft.utils.constants")
    classes = {
        "SEQ_CLS": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "CAUSAL_LM": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    }
    assert family(name).model.__name__ == classes[family(name).task][name]
    without = {"distilbert": ["q_lin", "v_lin"], "phi3": ["qkv_proj"]}
    theirs = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    assert without.keys().isdisjoint(theirs)
    assert default_targets(name) == tuple((theirs | without)[name])


def test_the_documents_list_the_families_and_their_targets():
    text = (Path(__file__).parents[3] / "docs" / "models.md").read_text().split("\n## ")[0]  # the first table
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    listed = {row[0].strip("`"): row for row in rows}
    assert listed.keys() == FAMILIES.keys()
    for name, (_, module, _, targets, trained, _) in listed.items():
        assert module == family(name).model.__name__
        assert tuple(targets.split(", ")) == default_targets(name)
        expected = trainer_targets(name) if family(name).task == "CAUSAL_LM" else []
        assert trained == (expected if isinstance(expected, str) else ", ".join(expected))


def test_an_unknown_family_is_an_error_that_lists_the_known():
    with pytest.raises(JloraError, match=r"one of bert, .*gpt2, .*; found 'robert', for which there is no code here"):
        family("robert")


@pytest.mark.parametrize(
    ("name", "switch", "value"),
    [
        ("bert", "position_embedding_type", "relative_key_query"),
        ("bert", "is_decoder", True),
        ("bert", "pruned_heads", {0: [1]}),
        ("roberta", "add_cross_attention", True),
        ("roberta", "quantization_config", {"bits": 4}),
        ("distilbert", "sinusoidal_pos_embds", True),
        ("distilbert", "pruned_heads", {0: [1]}),
    ],
)
def test_a_config_that_is_not_honoured_is_refused_by_its_key(name, switch, value):
    with pytest.raises(JloraError, match=switch):
        build(cases.tiny_config(name, **{switch: value}))


@pytest.mark.parametrize("name", cases.ENCODERS)
def test_width_must_be_a_multiple_of_the_heads(name):
    heads = {"n_heads": 5} if name == "distilbert" else {"num_attention_heads": 5}
    with pytest.raises(JloraError, match="multiple of the 5 attention heads; found 32"):
        build(cases.tiny_config(name, **heads))


def test_an_unknown_activation_is_refused_before_any_weight():
    with pytest.raises(JloraError, match="found 'mish'"):
        abstract_base(build(cases.tiny_config("bert", hidden_act="mish")))


@pytest.mark.parametrize("name", cases.ENCODERS)
def test_abstract_base_is_the_shape_of_init(name):
    model = build(cases.tiny_config(name), dtype=jnp.bfloat16, remat=True)
    batch = {key: jnp.zeros(spec.shape, spec.dtype) for key, spec in example_batch(model.config).items()}
    base = jax.jit(model.init)(jax.random.key(0), batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), base) == jax.tree.map(
        lambda x: (x.shape, x.dtype), abstract_base(model)
    )
    assert ("token_type_ids" in batch) == (name == "bert")


def test_abstract_base_of_a_large_model_costs_no_memory():
    config = cases.tiny_config("roberta", hidden_size=16384, intermediate_size=65536, num_hidden_layers=96)
    tree = abstract_base(build(config))
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) > 300e9
