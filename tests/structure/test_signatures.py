"""The shapes in the signatures of the public names are jaxtyping's, and true of an adapter."""

from __future__ import annotations

import dataclasses
import typing

import jax
import jax.numpy as jnp
import jaxtyping
import pytest
from transformers import PreTrainedConfig

import jlora

NAMES = {name: getattr(jaxtyping, name) for name in ("Array", "Float", "Int", "PRNGKeyArray", "PyTree")}
NAMES["PreTrainedConfig"] = PreTrainedConfig
FUNCTIONS = [name for name in jlora.__all__ if callable(getattr(jlora, name)) and name.islower()]


def _hints(of):
    return typing.get_type_hints(of, localns=NAMES)


def _is(value, hint):
    """`isinstance`, which compares no shapes for a union."""
    return any(isinstance(value, kind) for kind in typing.get_args(hint) or [hint])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_signature_is_one_that_jaxtyping_reads(name):
    assert "return" in _hints(getattr(jlora, name))


def test_the_shapes_of_the_entries_are_those_of_an_adapter():
    def fn(base, ids):
        x = base["embed"]["embedding"][ids]
        return jax.lax.scan(lambda x, w: (x @ w, None), x, base["layers"]["kernel"])[0] @ base["head"]["kernel"]

    shapes = {"embed": {"embedding": (9, 6)}, "layers": {"kernel": (3, 6, 6)}, "head": {"kernel": (6, 4)}}
    base = jax.tree.map(jnp.ones, shapes, is_leaf=lambda shape: isinstance(shape, tuple))
    options = {"modules_to_save": ["head"], "trainable_token_indices": {"embed": [1, 2]}, "use_dora": True}
    config = jlora.LoraConfig(r=2, target_modules=r"layers\..*", **options)
    adapter = jlora.init(jax.random.key(0), config, base, fn, jnp.zeros((1, 5), int))
    assert {type(entry) for entry in adapter.values()} == {jlora.LowRank, jlora.Full, jlora.Rows}
    for entry in adapter.values():
        for field in dataclasses.fields(entry):
            if not field.metadata.get("static"):
                assert _is(getattr(entry, field.name), _hints(type(entry))[field.name]), field.name


@pytest.mark.parametrize("make", [jax.random.key, jax.random.PRNGKey])
def test_both_kinds_of_keys_are_taken(make):
    key = make(0)
    assert _is(key, jaxtyping.PRNGKeyArray)
    base, config = {"w": jnp.ones((4, 4))}, jlora.LoraConfig(r=2, target_modules=["w"])
    assert jlora.init(key, config, base, lambda base, x: x @ base["w"], jnp.ones((1, 4)))
