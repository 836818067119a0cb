"""The configuration that is written with an adapter says what the adapter is, also when it was changed since."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import jlora
from jlora.initialization.abstract_adapter import abstract_adapter
from jlora.lora.entries import Rows
from jlora.peft.true_config import true_config
from tests.support.adapters.lora_cases import low_rank, normal, random_encoder, randomized
from tests.support.models import encoder_cases as cases

LORA = jlora.LoraConfig(
    r=2, lora_alpha=0.5, target_modules=["query", "dense"], modules_to_save=["classifier"], alpha_pattern={"query": 0.3}
)


def _made(**fields):
    config = dataclasses.replace(LORA, **fields)
    model, base, batch = random_encoder("bert")
    return randomized(abstract_adapter(config, base, model.apply, batch)), config


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_rslora": True, "rank_pattern": {"pooler.dense": 4}, "exclude_modules": ["output.dense"]},
        {"bias": "all", "layers_to_transform": [0]},
        {"bias": "lora_only", "use_dora": True},
        {"trainable_token_indices": [3, 1]},
        {"trainable_token_indices": {"position_embeddings": (3, 1)}},
        {"modules_to_save": None, "task_type": "SEQ_CLS"},
        {"modules_to_save": ["classifier", "score"], "task_type": "SEQ_CLS"},
        {"modules_to_save": []},
        {"target_modules": "all-linear", "alpha_pattern": {}},
        {"target_modules": r".*\.(query|key)"},
    ],
    ids=str,
)
def test_of_an_adapter_as_it_was_made_it_is_the_configuration_itself(fields):
    adapter, config = _made(**fields)
    assert true_config(config, adapter) == config


def _replaced(adapter, end, **changes):
    return {
        path: dataclasses.replace(entry, **changes) if path.endswith(end) else entry for path, entry in adapter.items()
    }


def _assert_read_as_it_is(adapter, config, tmp_path):
    """Saved and loaded, the merged base is the same; PEFT opens the folder and computes the same."""
    peft = pytest.importorskip("peft")
    model, base = cases.load_saved(oracle := cases.torch_classifier(cases.tiny_config("bert")), tmp_path / "base")
    batch = cases.random_batch(model.config)
    jlora.save_adapter(tmp_path / "new", adapter, config)
    again, _ = jlora.load_adapter(tmp_path / "new", base, model.apply, batch)
    merged = [jax.tree.leaves(jlora.merge(base, one)) for one in (again, adapter)]
    assert all((found == expected).all() for found, expected in zip(*merged, strict=True))
    opened = peft.PeftModel.from_pretrained(oracle, tmp_path / "new").eval()
    expected = jax.jit(jlora.adapt(model.apply))(base, adapter, batch)
    assert cases.difference(cases.torch_logits(opened, batch), expected) < 1e-5


def test_ranks_and_scales_that_were_changed(tmp_path):
    adapter, config = _made()
    query = next(entry for path, entry in adapter.items() if path.endswith("query/kernel"))
    adapter = _replaced(adapter, "query/kernel", scale=query.scale * jnp.asarray([[0.37], [1.9]]))
    adapter = _replaced(
        adapter, "pooler/dense/kernel", a=normal(1, 3, 32), b=0.1 * normal(2, 3, 32), scale=jnp.ones(3), ranks=(3,)
    )
    _assert_read_as_it_is(adapter, config, tmp_path)


def test_modules_that_were_left_out(tmp_path):
    adapter, config = _made(modules_to_save=None, task_type="SEQ_CLS")
    adapter = {path: entry for path, entry in adapter.items() if "classifier" not in path}
    query = next(entry for path, entry in adapter.items() if path.endswith("query/kernel"))
    scale, b = query.scale.at[1].set(0), query.b.at[1].set(0)
    adapter = _replaced(adapter, "query/kernel", scale=scale, b=b, ranks=(2, 0))
    _assert_read_as_it_is(adapter, config, tmp_path)


def test_modules_that_came_to_be_trained_whole(tmp_path):
    adapter, config = _made(modules_to_save=[])
    norm = "params/bert/encoder/layer/output/LayerNorm"
    adapter |= {f"{norm}/scale": jlora.Full(normal(1, 1, 32), (1,)), f"{norm}/bias": jlora.Full(normal(2, 1, 32), (1,))}
    assert true_config(config, adapter).modules_to_save == ["bert.encoder.layer.1.output.LayerNorm"]
    _assert_read_as_it_is(adapter, config, tmp_path)


LINEAR = low_rank("ra,rb->ab", (4, 5))
SMALL = jlora.LoraConfig(r=2, lora_alpha=3, target_modules=["x"])


def test_biases_of_adapted_modules_need_the_configurations_word():
    adapter = {"x/kernel": LINEAR, "x/bias": jlora.Full(normal(1, 5))}
    with pytest.raises(jlora.JloraError, match=r"^x/bias: found a trained bias of an adapted module.*bias='lora_only'"):
        true_config(SMALL, adapter)
    assert true_config(dataclasses.replace(SMALL, bias="lora_only"), adapter).bias == "lora_only"


def test_dora_is_for_all_modules_or_none():
    dora = dataclasses.replace(LINEAR, magnitude=jnp.ones(5), squared_norm=jnp.ones(5))
    assert true_config(SMALL, {"x/kernel": dora}).use_dora
    assert not true_config(dataclasses.replace(SMALL, use_dora=True), {"x/kernel": LINEAR}).use_dora
    with pytest.raises(jlora.JloraError, match=r"^y/kernel: expected a magnitude, as other entries have one"):
        true_config(SMALL, {"x/kernel": dora, "y/kernel": LINEAR})


@pytest.mark.parametrize("given", [None, [9], {"w": [5, 1]}, {"v": [1, 5]}])
def test_rows_other_than_the_configurations_are_named(given):
    adapter = {"x/kernel": LINEAR, "w/embedding": Rows(normal(1, 2, 4), (1, 5))}
    config = dataclasses.replace(SMALL, trainable_token_indices=given)
    assert true_config(config, adapter).trainable_token_indices == {"w": [1, 5]}
    assert true_config(config, {"x/kernel": LINEAR}).trainable_token_indices is None
