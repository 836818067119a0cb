"""Operations that move a factored weight's axes do to the sum of its factors what they do to the weight."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from encoder_cases import difference
from jax import lax
from lora_cases import low_rank, normal

from jlora.factored import Factored, factored, moved, slice_leading, watch
from jlora.merge import update

MOVES = {
    "transpose": lambda w: w.transpose(2, 0, 1),
    "reshape of out dims": lambda w: w.reshape(4, 15),
    "reshape that splits": lambda w: w.reshape(2, 2, 3, 5),
    "reshape with ones": lambda w: w.reshape(1, 4, 3, 1, 5),
    "slice": lambda w: w[1:3, :, 2:],
    "strided slice": lambda w: w[::2, :, 1::3],
    "squeeze": lambda w: lax.squeeze(w[1:2], (0,)),
    "new axis": lambda w: lax.broadcast_in_dim(w, (2, 4, 3, 5), (1, 2, 3)),
    "spread axis": lambda w: lax.broadcast_in_dim(w[:, :1], (4, 6, 5), (0, 1, 2)),
    "cast": lambda w: w.astype(jnp.bfloat16),
    "stop_gradient": lax.stop_gradient,
}


def _dense(value):
    shape = (*value.a.shape[:1], *value.weight.shape)
    return (jnp.broadcast_to(value.a, shape) * jnp.broadcast_to(value.b, shape)).sum(0)


def _carried(fn, value):
    """The factored value after every equation of `fn`; None where one has no rule."""
    (var,), eqns = (jaxpr := jax.make_jaxpr(fn)(value.weight).jaxpr).invars, jaxpr.eqns
    for eqn in eqns:
        assert eqn.invars == [var]
        (var,) = eqn.outvars
        value = moved(value, eqn.primitive.name, eqn.params)
        if value is None:
            return None
    return value


@pytest.mark.parametrize("spec", ["ra,rbc->abc", "rc,rab->abc", "rac,rb->abc"])
@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_moves(move, spec):
    weight, entry = normal(3, 4, 3, 5), low_rank(spec, (4, 3, 5))
    value = _carried(move, factored("w", weight, entry))
    if value is None:  # a factor that varies over a part of merged axes
        assert move is MOVES["reshape of out dims"]
        assert spec != "ra,rbc->abc"
        return
    assert (value.weight == move(weight)).all()
    assert difference(_dense(value), move(update(entry))) < (1e-2 if value.weight.dtype == jnp.bfloat16 else 1e-6)


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_each_dim_knows_the_leafs_axes_that_it_came_from(move):
    """Where the weight's values tell their place, a dim of the result varies over the axes that it names alone."""
    weight = jnp.asarray(np.indices((4, 3, 5)), jnp.float32)
    value = _carried(move, watch("w", weight[0]))
    places = [move(coordinate) for coordinate in weight]
    for dim, axes in enumerate(value.axes):
        varies = {axis for axis, place in enumerate(places) if _varies(place, dim)}
        assert varies <= set(axes)


def _varies(place, dim):
    return bool((jnp.diff(place.astype(jnp.float32), axis=dim) != 0).any())


def test_a_watched_leaf_moves_without_factors():
    value = _carried(MOVES["transpose"], watch("w", normal(3, 4, 3, 5)))
    assert value.watched
    assert value.axes == ((2,), (0,), (1,))


def test_other_primitives_have_no_rule():
    for fn in (jnp.tanh, lambda w: w.astype(jnp.int32)):
        assert _carried(fn, factored("w", normal(3, 4, 3), low_rank("ra,rb->ab", (4, 3)))) is None


def test_stack_axes_may_stand_anywhere():
    entry = low_rank("bra,brc->abc", (4, 3, 5))
    assert difference(_dense(factored("w", normal(3, 4, 3, 5), entry)), update(entry)) < 1e-6


def test_a_scan_goes_over_the_leading_axis_of_weight_and_factors():
    entry = low_rank("arb,arc->abc", (3, 4, 5))
    outer, inner = slice_leading(factored("w", normal(3, 3, 4, 5), entry))
    assert inner.stack == (0,)
    assert inner.axes == ((1,), (2,))
    for layer in range(3):
        one = jax.tree.map(lambda leaf, layer=layer: leaf[layer], outer)
        assert isinstance(one, Factored)
        assert difference(_dense(one), update(entry)[layer]) < 1e-6
