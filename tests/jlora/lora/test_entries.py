"""What can be said of an adapter without a function: labels, split and combine, counts, fit."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
import pytest

import jlora
from jlora.lora.entries import count_trained, require_fit, scale_b
from tests.support.adapters.lora_cases import low_rank, normal, random_adapter

ADAPTER = {
    "dense/kernel": low_rank("ra,rb->ab", (5, 3)),
    "layers/kernel": low_rank("arb,arc->abc", (4, 5, 3), dropout=0.1),
    "head/bias": jlora.Full(normal(1, 3)),
}


def _same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    return all((x == y).all() for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


def test_labels_name_every_array():
    labels = jlora.labels(ADAPTER)
    assert jax.tree.structure(labels) == jax.tree.structure(ADAPTER)
    assert (labels["dense/kernel"].a, labels["dense/kernel"].b, labels["dense/kernel"].scale) == ("a", "b", "frozen")
    assert labels["head/bias"].value == "head"


@pytest.mark.parametrize("combined", [optax.partition, optax.multi_transform])
def test_labels_are_what_optax_takes(combined):
    rates = {"a": 0.0, "b": 1.0, "head": 2.0}
    transforms = {label: optax.sgd(rate) for label, rate in rates.items()} | {"frozen": optax.set_to_zero()}
    optimizer = combined(transforms, jlora.labels(ADAPTER))
    ones = jax.tree.map(jnp.ones_like, ADAPTER)
    updates, _ = optimizer.update(ones, optimizer.init(ADAPTER), ADAPTER)
    assert (updates["dense/kernel"].a == 0).all()
    assert (updates["layers/kernel"].b == -1).all()
    assert (updates["head/bias"].value == -2).all()
    assert (updates["dense/kernel"].scale == 0).all()


def test_split_and_combine_are_inverses():
    trainable, frozen = jlora.split(ADAPTER)
    assert _same(jlora.combine(trainable, frozen), ADAPTER)
    assert _same(jlora.combine(frozen, trainable), ADAPTER)
    assert [leaf.shape for leaf in jax.tree.leaves(frozen)] == [(2,), (4, 2)]
    assert len(jax.tree.leaves(trainable)) + len(jax.tree.leaves(frozen)) == len(jax.tree.leaves(ADAPTER))


def test_the_trainable_part_alone_can_be_differentiated():
    trainable, frozen = jlora.split(ADAPTER)

    def loss(trainable):
        adapter = jlora.combine(trainable, frozen)
        return jnp.sum(jlora.adapt(lambda base, x: x @ base["dense"]["kernel"])(base, adapter, normal(4, 4, 5)))

    zero = {"dense": {"kernel": (5, 3)}, "layers": {"kernel": (4, 5, 3)}, "head": {"bias": (3,)}}
    base = jax.tree.map(jnp.zeros, zero, is_leaf=lambda value: isinstance(value, tuple))
    gradient = jax.grad(loss)(trainable)
    assert gradient["dense/kernel"].scale is None
    assert gradient["dense/kernel"].a.any()


def test_the_scale_stands_on_the_rank_axis_and_has_no_gradient():
    entry = dataclasses.replace(ADAPTER["layers/kernel"], scale=jnp.arange(8.0).reshape(4, 2))
    assert (scale_b(entry) == jnp.einsum("lrc,lr->lrc", entry.b, entry.scale)).all()
    assert not jax.grad(lambda entry: jnp.sum(scale_b(entry)))(entry).scale.any()


def test_an_entry_knows_its_leafs_shape():
    assert ADAPTER["dense/kernel"].shape == (5, 3)
    assert ADAPTER["layers/kernel"].shape == (4, 5, 3)
    assert low_rank("bra,brc->abc", (4, 3, 5)).shape == (4, 3, 5)


def test_an_adapter_that_does_not_fit_is_refused():
    leaves = {"dense/kernel": normal(3, 5, 3), "layers/kernel": normal(3, 4, 5, 3), "head/bias": normal(3, 3)}
    require_fit(ADAPTER, leaves)
    with pytest.raises(jlora.JloraError, match=r"^head/bias: expected .*\(4,\), found one for \(3,\)"):
        require_fit(ADAPTER, leaves | {"head/bias": normal(3, 4)})
    with pytest.raises(jlora.JloraError, match=r"^head/bias: not in the base tree"):
        require_fit(ADAPTER, {path: leaf for path, leaf in leaves.items() if path != "head/bias"})


def _shapes(**shapes):
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def test_a_layer_of_5000_x_10000_at_rank_8_has_120000():
    base, x = _shapes(w=(5000, 10000)), jax.ShapeDtypeStruct((1, 5000), jnp.float32)
    config = jlora.LoraConfig(r=8, target_modules=["w"])
    adapter = jax.eval_shape(lambda base: jlora.init(jax.random.key(0), config, base, lambda b, x: x @ b["w"], x), base)
    assert jlora.count_parameters(base, adapter) == (50_120_000, 120_000)


def test_counts():
    base = {"dense": _shapes(kernel=(5, 3), bias=(3,)), "head": _shapes(bias=(3,))}
    assert jlora.count_parameters(base) == (21, 0)
    adapter = {"dense/kernel": ADAPTER["dense/kernel"], "head/bias": ADAPTER["head/bias"]}
    assert jlora.count_parameters(base, adapter) == (21 + 2 * (5 + 3), 2 * (5 + 3) + 3), "a head counts once"
    assert jlora.count_parameters(base, adapter, prefix="head") == (3, 3)
    assert jlora.count_parameters(base, adapter, prefix="dense/k") == (15 + 16, 16)


def test_padding_of_a_stack_does_not_count_and_stacks_inside_do():
    base = {"layers": {"kernel": normal(3, 3, 4, 4)}}

    def scanned(base, x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, base["layers"]["kernel"])[0]

    fields = {"targets": ["layers.0", "layers.2"], "rank_pattern": {"layers.2": 5}}
    with pytest.warns(UserWarning, match="rank 5 is above"):
        adapter = random_adapter(scanned, base, normal(4, 2, 4), **fields)
    assert adapter["layers/kernel"].a.shape == (3, 5, 4)
    assert jlora.count_parameters(base, adapter)[1] == (2 + 5) * (4 + 4)
    one_module = dataclasses.replace(low_rank("arb,arc->abc", (3, 4, 4)), ranks=(2,))
    assert count_trained(one_module) == 3 * 2 * (4 + 4)
