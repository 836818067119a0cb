"""What a training step computes, read from its jaxpr: never the full gradient of a weight with an adapter on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jlora
from jlora.tree.leaf_paths import leaves_by_path
from tests.support.adapters.lora_cases import random_adapter, random_encoder
from tests.support.functions.every_function import FUNCTIONS, Case


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a jaxpr and of the jaxprs inside of it."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def weight_shapes(base: Any, adapter: Any) -> set[tuple[int, ...]]:
    """The shapes that the gradient of an adapted leaf can have, axes in rising order, with those of its layers."""
    shapes = set()
    for path, entry in adapter.items():
        shape, stack = leaves_by_path(base)[path].shape, entry.scale.ndim - 1
        shapes |= {tuple(sorted(shape[dropped:])) for dropped in range(stack + 1)}
    return shapes


def full_gradients(loss: Callable, adapter: Any, shapes: set[tuple[int, ...]], tokens: set[int]) -> list[Any]:
    """The products in the gradient of `loss` that contract axes of these sizes and have the shape of a weight."""
    jaxpr = jax.make_jaxpr(jax.grad(loss))(adapter).jaxpr
    products = [eqn for eqn in equations(jaxpr) if eqn.primitive.name == "dot_general"]
    assert len(products) > 3
    return [eqn for eqn in products if _sorted_shape(eqn) in shapes and _contracted(eqn) <= tokens]


def _sorted_shape(eqn: Any) -> tuple[int, ...]:
    return tuple(sorted(eqn.outvars[0].aval.shape))


def _contracted(eqn: Any) -> set[int]:
    (left, _), _ = eqn.params["dimension_numbers"]
    return {eqn.invars[0].aval.shape[axis] for axis in left}


def encoder(*, remat: bool) -> Case:
    """A tiny BERT: 4 rows of 12 tokens, 32 wide; no other axis has a size that an axis of tokens has."""
    model, base, batch = random_encoder("bert", remat=remat, intermediate_size=40, num_attention_heads=2)
    return Case(model.apply, base, (batch,))


# (function, targets, the sizes of the axes of tokens: alone, and flattened)
STEPS = {
    "encoder": (lambda: encoder(remat=False), ["dense", "query", "key", "value"], {4, 12, 48}),
    "encoder, remat": (lambda: encoder(remat=True), ["dense", "query", "key", "value"], {4, 12, 48}),
    "plain": (FUNCTIONS["several_products"], ".*", {3}),
    "fused projections": (FUNCTIONS["fused_projections"], ".*", {2, 5, 10}),
}


@pytest.mark.parametrize(("build", "targets", "tokens"), STEPS.values(), ids=STEPS)
def test_no_full_gradient_of_an_adapted_weight_is_formed(build, targets, tokens):
    case = build()
    adapter = random_adapter(case.fn, case.base, *case.args, targets=targets)
    shapes = weight_shapes(case.base, adapter)

    def adapted_loss(adapter):
        return jnp.sum(jlora.adapt(case.fn)(case.base, adapter, *case.args))

    def plain_loss(adapter):  # W + AB formed, then differentiated
        return jnp.sum(case.fn(jlora.merge(case.base, adapter), *case.args))

    assert full_gradients(plain_loss, adapter, shapes, tokens), "the plain formula forms them: the search must find it"
    assert not full_gradients(adapted_loss, adapter, shapes, tokens)


@pytest.mark.parametrize("use_dora", [False, True])
def test_neither_dropout_nor_dora_forms_it(use_dora):
    case = encoder(remat=True)
    config = jlora.LoraConfig(r=2, lora_dropout=0.1, use_dora=use_dora, target_modules=["dense", "query"])
    adapter = jlora.init(jax.random.key(0), config, case.base, case.fn, *case.args)

    def loss(adapter):
        return jnp.sum(jlora.adapt(case.fn)(case.base, adapter, *case.args, dropout_key=jax.random.key(1)))

    assert not full_gradients(loss, adapter, weight_shapes(case.base, adapter), {4, 12, 48})
