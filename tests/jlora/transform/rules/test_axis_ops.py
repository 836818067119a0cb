"""Operations that move a factored weight's axes do to the sum of its factors what they do to the weight."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jlora.algebra.merge import update
from jlora.errors import JloraError
from jlora.transform.adapted_weight import Role, attach_update, compute_dense, watch
from jlora.transform.context import Context
from jlora.transform.interpreter import evaluate_jaxpr
from tests.support.adapters.lora_cases import low_rank, normal
from tests.support.models.encoder_cases import difference

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
    "one place": lambda w: w[2],
    "one place, found at run time": lambda w: lax.dynamic_index_in_dim(w, 2, keepdims=False),
    "a part, found at run time": lambda w: lax.dynamic_slice_in_dim(w, jnp.int32(1), 2, axis=1),
    "one of all": lambda w: list(w)[2],
    "reversed": lambda w: w[:, ::-1],
    "half of a split": lambda w: jnp.split(w, 2)[1],
    "named": lambda w: checkpoint_name(w, "weight"),
    "kept from fusion": lax.optimization_barrier,
    "repeated": lambda w: jnp.repeat(w, 2, axis=1),
}


def _carried(fn, value):
    """What `fn` makes of the factored value; None where a primitive has no rule."""
    try:
        return evaluate_jaxpr(Context(None), jax.make_jaxpr(fn)(value.weight), [value])[0]
    except JloraError:
        return None


def _update(value):
    return compute_dense(value) - value.weight


@pytest.mark.parametrize("spec", ["ra,rbc->abc", "rc,rab->abc", "rac,rb->abc"])
@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_moves(move, spec):
    weight, entry = normal(3, 4, 3, 5), low_rank(spec, (4, 3, 5))
    value = _carried(move, attach_update("w", weight, entry))
    if value is None:  # a factor that varies over a part of merged axes
        assert move is MOVES["reshape of out dims"]
        assert spec != "ra,rbc->abc"
        return
    assert (value.weight == move(weight)).all()
    assert difference(_update(value), move(update(entry))) < (2e-2 if value.weight.dtype == jnp.bfloat16 else 1e-6)


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_each_dim_knows_the_leafs_axes_that_it_came_from(move):
    """Where the weight's values tell their place, a dim of the result varies over the axes that it names alone."""
    weight = jnp.asarray(np.indices((4, 3, 5)), jnp.float32)
    value = _carried(move, watch("w", weight[0]))
    places = [move(coordinate) for coordinate in weight]
    for dim, axes in enumerate(value.updates[0].axes):
        varies = {axis for axis, place in enumerate(places) if _varies(place, dim)}
        assert varies <= set(axes)


def _varies(place, dim):
    return bool((jnp.diff(place.astype(jnp.float32), axis=dim) != 0).any())


def test_an_observed_leaf_moves_without_factors():
    value = _carried(MOVES["transpose"], watch("w", normal(3, 4, 3, 5)))
    assert value.role is Role.OBSERVED
    assert value.updates[0].axes == ((2,), (0,), (1,))


def test_other_primitives_have_no_rule():
    for fn in (jnp.tanh, lambda w: w.astype(jnp.int32)):
        assert _carried(fn, attach_update("w", normal(3, 4, 3), low_rank("ra,rb->ab", (4, 3)))) is None


@pytest.mark.parametrize("move", [MOVES["one place"], MOVES["one place, found at run time"]])
def test_a_place_that_was_picked_is_remembered(move):
    assert _carried(move, watch("w", normal(3, 4, 3, 5))).updates[0].picked == (0,)


def test_a_gain_moves_as_the_factors_do_and_keeps_its_dtype():
    entry = low_rank("rb,rac->abc", (4, 3, 5))
    gain = 1 + 0.1 * jnp.abs(normal(5, 4, 1, 5))
    value = dataclasses.replace(attach_update("w", normal(3, 4, 3, 5), entry), gain=gain)
    for name in ("transpose", "strided slice", "one place", "reversed", "half of a split"):
        assert difference(compute_dense(_carried(MOVES[name], value)), MOVES[name](compute_dense(value))) < 1e-6, name
    assert _carried(MOVES["cast"], value).gain.dtype == jnp.float32
