"""How a product or a lookup uses a weight, and that its update is that of the whole sum."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jlora
from jlora.algebra.merge import update
from jlora.transform.adapt import find_uses
from jlora.transform.adapted_weight import attach_update
from jlora.transform.rules.dot_and_gather import dot_update, lookup_axis
from jlora.transform.uses import Use
from tests.support.adapters.lora_cases import assert_adapted_is_merged, low_rank, normal
from tests.support.models.encoder_cases import difference


def _numbers(contract, batch=((), ())):
    return {"dimension_numbers": (contract, batch), "precision": None}


@pytest.mark.parametrize(
    ("spec", "x_shape", "contract", "batch"),
    [
        ("ra,rbc->abc", (2, 4), ((1,), (0,)), ((), ())),
        ("rb,rac->abc", (3, 2), ((0,), (1,)), ((), ())),
        ("rab,rc->abc", (4, 2, 3), ((0, 2), (0, 1)), ((), ())),
        ("rab,rc->abc", (3, 4, 2), ((1, 0), (0, 1)), ((), ())),
        ("rb,rac->abc", (2, 4), ((1,), (0,)), ((), ())),  # the factors the other way round
        ("rabc,r->abc", (2, 4), ((1,), (0,)), ((), ())),
        ("arb,arc->abc", (4, 2, 3), ((2,), (1,)), ((0,), (0,))),
        ("brc,bra->abc", (2, 3, 5), ((2,), (2,)), ((1,), (1,))),
        ("arb,arc->abc", (2, 3, 5), ((2, 1), (2, 1)), ((), ())),
    ],
)
@pytest.mark.parametrize("w_is_left", [False, True])
def test_the_update_of_a_product_is_that_with_the_dense_sum(spec, x_shape, contract, batch, w_is_left):
    x, entry = normal(4, *x_shape), low_rank(spec, (4, 3, 5))
    params = _numbers(contract, batch)
    weight = attach_update("w", normal(3, 4, 3, 5), entry)
    operands = (x, update(entry))
    if w_is_left:
        operands = operands[::-1]
        params = _numbers(contract[::-1], batch[::-1])
    expected = lax.dot_general(*operands, **params)
    found = dot_update(weight.updates[0], weight.weight, x, w_is_left, params, None)
    assert difference(jnp.broadcast_to(found, expected.shape), expected) < 1e-5


def _uses(fn, shape, *args):
    return find_uses(fn, {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}, *args)["w"]


@pytest.mark.parametrize(
    ("fn", "shape", "use"),
    [
        (lambda b, x: x @ b["w"], (5, 3), Use("linear", (), (0,), (1,))),
        (lambda b, x: b["w"] @ x.T, (3, 5), Use("linear", (), (1,), (0,))),
        (lambda b, x: jnp.tensordot(x, b["w"], 1), (5, 2, 3), Use("linear", (), (0,), (1, 2))),
        (lambda b, x: x @ b["w"].reshape(5, 6), (5, 2, 3), Use("linear", (), (0,), (1, 2))),
        (lambda b, x: jnp.einsum("ti,eio->eto", x, b["w"]), (2, 5, 3), Use("linear", (), (1,), (0, 2))),
        (lambda b, x: jax.vmap(jnp.dot)(x, b["w"]), (4, 5, 3), Use("linear", (0,), (1,), (2,))),
        (lambda b, x: lax.scan(lambda x, w: (x @ w, None), x, b["w"])[0], (2, 5, 5), Use("linear", (0,), (1,), (2,))),
        (lambda b, x: b["w"][jnp.array([1, 2])], (5, 3), Use("lookup", (), (0,), (1,))),
        (lambda b, x: jnp.take(b["w"], jnp.array([1, 2]), axis=1), (5, 3), Use("lookup", (), (1,), (0,))),
        (lambda b, x: x @ b["w"][1], (2, 5, 3), Use("linear", (0,), (1,), (2,))),
        (
            lambda b, x: x @ lax.dynamic_index_in_dim(b["w"], 1, keepdims=False),
            (2, 5, 3),
            Use("linear", (0,), (1,), (2,)),
        ),
        (lambda b, x: x @ b["w"][1], (2, 5), Use("linear", (), (1,), ())),
        (lambda b, x: x * b["w"], (4, 5), Use("mul")),
        (lambda b, x: jnp.tensordot(x, b["w"].reshape(5, 2, 3), 1), (10, 3), Use("dot_general over a part of an axis")),
    ],
)
def test_uses(fn, shape, use):
    assert _uses(fn, shape, normal(4, 4, 5)) == (use,)


@pytest.mark.parametrize(("form", "shape"), [("hti,iho->hto", (5, 2, 3)), ("hti,hio->hto", (2, 5, 3))])
@pytest.mark.parametrize("use_dora", [False, True])
def test_a_batch_over_a_part_of_an_axis(form, shape, use_dora):
    """Heads of the outputs each with an input of its own (DeepSeek's attention), and groups of inputs."""

    def fn(base, x):
        return jnp.einsum(form, x, base["w"].reshape(shape))

    base, x = {"w": normal(1, 5, 6) if shape[0] == 5 else normal(1, 10, 3)}, normal(2, 2, 4, 5)
    assert find_uses(fn, base, x)["w"] == (Use("linear", (), (0,), (1,)),)
    config = jlora.LoraConfig(r=2, target_modules=["w"], init_lora_weights=False, use_dora=use_dora)
    assert_adapted_is_merged(fn, base, jlora.init(jax.random.key(0), config, base, fn, x), x)


def test_two_uses_are_both_seen():
    uses = _uses(lambda b, ids: b["w"][ids] @ b["w"].T, (5, 3), jnp.array([1, 2]))
    assert uses == (Use("lookup", (), (0,), (1,)), Use("linear", (), (1,), (0,)))


@pytest.mark.parametrize(
    ("fn", "axis"),
    [
        (lambda w: w[jnp.array([1, 2])], 0),
        (lambda w: w[:, jnp.array([[1], [2]])], 1),
        (lambda w: w[jnp.array([1]), jnp.array([2])], None),
        (lambda w: w[jnp.array([1, 2]), 1:], None),
    ],
)
def test_lookups_of_whole_slices_are_told_from_other_gathers(fn, axis):
    def all_gathers(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "gather":
                yield eqn
            for inner in jax.tree.leaves(eqn.params, is_leaf=lambda value: hasattr(value, "jaxpr")):
                if hasattr(inner, "jaxpr"):
                    yield from all_gathers(inner.jaxpr)

    weight = normal(3, 5, 3)
    found = [lookup_axis(eqn.params, eqn.invars[0].aval.shape) for eqn in all_gathers(jax.make_jaxpr(fn)(weight).jaxpr)]
    assert found == [axis]


def test_a_lookup_under_vmap_that_clamps_both_indices():
    """`jax.vmap(lambda i: lax.dynamic_index_in_dim(table, i))`, as Equinox's Embedding: a gather by two indices."""

    def fn(base, ids):
        return jax.vmap(lambda i: lax.dynamic_index_in_dim(base["w"], i, keepdims=False))(ids)

    base, ids = {"w": normal(1, 7, 4)}, jnp.array([5, 0, 99])
    assert _uses(fn, (7, 4), ids) == (Use("lookup", (), (0,), (1,)),)
    assert_adapted_is_merged(fn, base, {"w": low_rank("ra,rb->ab", (7, 4))}, ids)
