"""From a config to a model: what is planned without weights is what a run then holds."""

import jax
import pytest

from jlora.pretrained.source import PretrainedSource
from tests.support.training import tiny_lm
from train.lm.config import LMConfig
from train.lm.model import abstract_model, prepare_model
from train.planning.memory import count_bytes


def _config(**changes):
    sections = {"data": {"train": "t", "max_length": 32}, "train": {}, **changes}
    sections["train"] = {"dtype": "bfloat16", **sections["train"]}
    return LMConfig.model_validate({"model": str(tiny_lm.model_folder()), "output_dir": "o", **sections})


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The adapter of a run with other settings than a config's own."""
    run = tmp_path_factory.mktemp("stored") / "run"
    return tiny_lm.train(run, "lora.r=3", "lora.target_modules=[q_proj]", "lora.use_dora=true") / "adapter"


def _of(adapted):
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), adapted.adapter)
    return count_bytes(adapted.base), count_bytes(adapted.adapter), shapes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora": {"init_lora_weights": "pissa"}},
        {"lora": {"init_lora_weights": "olora"}},
        {"quantize": "nf4"},
        {"quantize": "nf4", "lora": {"init_lora_weights": "loftq"}},
        {"quantize": "int8"},
        {"method": "full"},
        {"lora": {"from": "stored"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_plan_holds_what_the_run_holds(changes, dtype, stored):
    if changes.get("lora", {}).get("from"):
        changes = {"lora": {"from": str(stored)}}
    config = _config(train={"dtype": dtype}, **changes)
    source = PretrainedSource(config.model)
    assert _of(abstract_model(config, source)) == _of(prepare_model(config, source))


@pytest.mark.parametrize(
    ("lora", "own_head"),
    [
        ({}, False),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, True),
        ({"target_modules": ["q_proj", "lm_head"]}, True),
        ({"target_modules": ["embed_tokens"]}, True),
        ({"modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True}, False),
    ],
)
def test_a_tied_head_gets_a_table_of_its_own_where_the_adapter_needs_one(lora, own_head):
    config = _config(model=str(tiny_lm.model_folder("llama", tie_word_embeddings=True)), lora=lora)
    source = PretrainedSource(config.model)
    adapted = prepare_model(config, source)
    assert ("lm_head" in adapted.base["params"]) == own_head
    assert adapted.model.config.tie_word_embeddings == (not own_head)
    assert _of(abstract_model(config, source)) == _of(adapted)
