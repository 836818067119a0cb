"""Layers set apart compute what the stack does, in all families, layer patterns and dtypes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jlora.models.kv_cache import with_room
from jlora.models.registry import build
from jlora.models.unstack_layers import unstack_cache, unstack_layers
from tests.support.models import decoder_cases as cases
from tests.support.models.encoder_cases import difference


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "falcon"])
def test_layers_set_apart_are_the_stack(name):
    """A prompt padded on the left goes through the stack, two tokens more through both."""
    model_type, switches = cases.SWITCHES.get(name, (name, {}))
    model = build(cases.tiny_decoder(model_type, **switches))
    base, ids = cases.random_base(model), cases.random_tokens(model.config)["input_ids"][::2]
    mask = jnp.ones_like(ids).at[1, :3].set(0)
    extend = cases.quick(lambda *arguments: model.apply(*arguments, method="extend"))
    cache = model.empty_cache(2, 5, jnp.float32)
    _, cache = extend(base, {"input_ids": ids[:, :5], "attention_mask": mask[:, :5]}, cache)
    stacked = with_room(cache, 9)
    apart, single = unstack_cache(stacked), unstack_layers(base, jnp.float32)
    for place in (5, 6):
        batch = {"input_ids": ids[:, place : place + 1], "attention_mask": mask[:, place : place + 1]}
        expected, stacked = extend(base, batch, stacked)
        found, apart = extend(single, batch, apart)
        assert difference(found, expected) < 1e-5
    assert isinstance(apart.keys, tuple)
    for one, other in ((apart.keys, stacked.keys), (apart.values, stacked.values)):
        np.testing.assert_allclose(jnp.stack(one), other, atol=1e-5)


def test_weights_are_cast_once_and_norms_stay():
    model = build(cases.tiny_decoder("llama"), dtype=jnp.bfloat16)
    base = cases.random_base(model)
    for path, leaf in jax.tree_util.tree_leaves_with_path(unstack_layers(base, jnp.bfloat16)):
        is_norm = "scale" in jax.tree_util.keystr(path)
        assert leaf.dtype == (jnp.float32 if is_norm else jnp.bfloat16)
