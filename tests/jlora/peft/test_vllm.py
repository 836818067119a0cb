"""Adapters for vLLM: the same function at one rank and scale 1; what vLLM does not serve is refused by its path."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from safetensors.numpy import load_file

import jlora
from jlora.lora.entries import Rows
from jlora.peft.vllm import for_vllm
from tests.support.adapters.lora_cases import low_rank, normal, random_encoder, randomized
from tests.support.models import encoder_cases as cases

LORA = jlora.LoraConfig(
    r=3,
    lora_alpha=0.5,
    target_modules=["query", "dense"],
    exclude_modules=["pooler.dense"],
    rank_pattern={"layer.0.attention.self.query": 5, "intermediate.dense": 2},
    alpha_pattern={"layer.1.*": 0.7},
    use_rslora=True,
    lora_dropout=0.1,
)


def _saved(folder):
    model, base, batch = random_encoder("bert")
    adapter = randomized(jlora.init(jax.random.key(0), LORA, base, model.apply, batch))
    jlora.save_adapter(folder, adapter, LORA, base_model="a/base", vllm=True)
    return model, base, batch, adapter


def test_the_file_is_the_same_function_with_one_rank_and_no_patterns(tmp_path):
    model, base, batch, adapter = _saved(tmp_path)
    again, config = jlora.load_adapter(tmp_path, base, model.apply, batch)
    merged = [jax.tree.leaves(jlora.merge(base, one)) for one in (again, adapter)]
    assert all(cases.difference(found, expected) < 1e-6 for found, expected in zip(*merged, strict=True))
    assert (config.r, config.lora_alpha, config.use_rslora) == (5, 5, False)
    assert (config.rank_pattern, config.alpha_pattern) == ({}, {})
    keys = load_file(tmp_path / "adapter_model.safetensors")
    assert {key.rsplit(".", 2)[1] for key in keys} == {"lora_A", "lora_B"}


def test_the_configuration_is_what_vllm_reads(tmp_path):
    """Its required keys, its checks, and the scale that it computes: lora_alpha / r = 1."""
    _saved(tmp_path)
    fields = json.loads((tmp_path / "adapter_config.json").read_text())
    assert fields["lora_alpha"] / fields["r"] == 1
    assert isinstance(fields["target_modules"], list)
    assert not fields["modules_to_save"]
    assert (fields["bias"], fields["use_dora"], fields["use_rslora"]) == ("none", False, False)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {tensor.shape["lora_B" in key] for key, tensor in tensors.items()} == {fields["r"]}


def test_peft_computes_the_same_from_it(tmp_path):
    peft = pytest.importorskip("peft")
    model, base = cases.load_saved(oracle := cases.torch_classifier(cases.tiny_config("bert")), tmp_path / "base")
    batch = cases.random_batch(model.config)
    adapter = randomized(jlora.init(jax.random.key(0), LORA, base, model.apply, batch))
    jlora.save_adapter(tmp_path / "ours", adapter, LORA, vllm=True)
    opened = peft.PeftModel.from_pretrained(oracle, tmp_path / "ours").eval()
    expected = jax.jit(jlora.adapt(model.apply))(base, adapter, batch)
    assert cases.difference(cases.torch_logits(opened, batch), expected) < 1e-5


def test_scales_that_differ_within_a_module_go_into_b():
    """As of an adapter that was put together from several (`add_weighted_adapter`)."""
    entry = dataclasses.replace(low_rank("ra,rb->ab", (4, 5)), scale=jnp.asarray([0.5, -3.0]))
    folded, config = for_vllm({"x/kernel": entry}, jlora.LoraConfig(), ["x"])
    assert (folded["x/kernel"].scale == 1).all()
    base = {"x": {"kernel": jnp.zeros((4, 5))}}
    merged = [jlora.merge(base, one)["x"]["kernel"] for one in (folded, {"x/kernel": entry})]
    assert cases.difference(*merged) < 1e-6
    assert config.target_modules == ["x"]


LINEAR = low_rank("ra,rb->ab", (4, 5))


@pytest.mark.parametrize(
    ("path", "entry", "found"),
    [
        ("head/kernel", jlora.Full(normal(1, 4, 5)), "found a weight of modules_to_save that is trained whole"),
        ("query/bias", jlora.Full(normal(1, 5)), "found a bias that is trained whole"),
        ("embed_tokens/embedding", Rows(normal(1, 2, 4), (1, 2)), "found trained rows of an embedding"),
        ("query/kernel", dataclasses.replace(LINEAR, magnitude=jnp.ones(5)), "found DoRA's magnitude"),
        ("stem/kernel", low_rank("rcab,rd->abcd", (3, 3, 4, 5), kind="conv"), "found a convolution"),
        ("wte/embedding", low_rank("ra,rb->ab", (7, 4), kind="lookup"), "an embedding that vLLM adapts, embed_tokens"),
    ],
)
def test_what_vllm_does_not_serve(path, entry, found, tmp_path):
    adapter = {"value/kernel": LINEAR, path: entry}
    with pytest.raises(jlora.JloraError) as caught:
        jlora.save_adapter(tmp_path / "new", adapter, jlora.LoraConfig(target_modules=["value"]), vllm=True)
    message = str(caught.value)
    assert message.startswith(f"{path}: expected ")
    assert found in message
    assert "merge the adapter into the base, which vLLM serves whole" in message
    assert not (tmp_path / "new").exists()


def test_a_tied_embedding_that_both_uses_see_is_refused():
    adapter = {"embed_tokens/embedding": low_rank("ra,rb->ab", (7, 4), kind="lookup")}
    config = jlora.LoraConfig(target_modules=["embed_tokens"])
    assert for_vllm(adapter, config, ["embed_tokens"])
    tied = {path: dataclasses.replace(entry, tied=True) for path, entry in adapter.items()}
    with pytest.raises(jlora.JloraError, match=r"^embed_tokens/embedding: expected .*, found ensure_weight_tying"):
        for_vllm(tied, config, ["embed_tokens"])


def test_a_rank_that_no_vllm_can_be_started_with():
    wide = dataclasses.replace(LINEAR, a=normal(1, 513, 4), b=normal(2, 513, 5), scale=jnp.ones(513), ranks=(513,))
    with pytest.raises(jlora.JloraError, match=r"expected 1 to 512.*found 513; jlora\.reduce_rank makes it smaller"):
        for_vllm({"x/kernel": wide}, jlora.LoraConfig(), ["x"])
