"""An adapter of stacked layers does the same to layers that are apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.bank.unstack_entries import unstack_entries
from jlora.errors import JloraError
from jlora.models.unstack_layers import unstack_cache, unstack_layers
from jlora.pretrained.load import build, example_batch
from tests.support.models.decoder_cases import random_base, tiny_decoder


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "bloom"])
@pytest.mark.parametrize("use_dora", [False, True])
def test_logits_are_the_same(model_type, use_dora):
    model = build(tiny_decoder(model_type))
    base = random_base(model)
    fields = {"rank_pattern": {"0.*": 1}, "use_dora": use_dora, "init_lora_weights": False}
    lora = jlora.LoraConfig(r=3, target_modules="all-linear", **fields)
    batch = {"input_ids": jnp.arange(6)[None] + 3, "attention_mask": jnp.ones((1, 6), jnp.int32)}
    adapter = jlora.init(jax.random.key(1), lora, base, model.apply, example_batch(model.config))

    def step(base, batch, cache):
        return model.apply(base, batch, cache, method="extend")[0]

    cache = model.empty_cache(1, 8, jnp.float32)
    stacked = jlora.adapt(step)(base, adapter, batch, cache)
    layers = unstack_entries(adapter)
    apart = jlora.adapt(step)(unstack_layers(base, jnp.float32), layers, batch, unstack_cache(cache))
    np.testing.assert_allclose(stacked, apart, rtol=1e-4, atol=1e-5)
    # The forms are those that a bank of such a base has places for.
    bank = jlora.make_bank(
        unstack_layers(base, jnp.float32), step, batch, unstack_cache(cache), slots=1, max_rank=3, use_dora=use_dora
    )
    assert jlora.take(jlora.put(bank, 0, layers), 0).keys() == layers.keys()


def test_layers_that_are_not_adapted_are_left_out():
    model = build(tiny_decoder("llama"))
    lora = jlora.LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[1])
    adapter = jlora.init(jax.random.key(0), lora, random_base(model), model.apply, example_batch(model.config))
    assert list(unstack_entries(adapter)) == ["params/model/layers/1/self_attn/q_proj/kernel"]


def test_other_entries_are_kept_or_refused():
    head = {"params/head/kernel": jlora.Full(jnp.ones((2, 3)))}
    assert unstack_entries(head) == head
    norms = {"params/model/layers/norm/scale": jlora.Full(jnp.arange(6.0).reshape(2, 3))}
    assert unstack_entries(norms)["params/model/layers/1/norm/scale"].value.tolist() == [3, 4, 5]
    with pytest.raises(JloraError, match="of all layers"):
        unstack_entries({"params/model/layers/norm/scale": jlora.Full(jnp.ones((1, 3)), layers=(1,))})
