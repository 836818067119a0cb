"""Moves of a quantized weight: put off where they keep its layers apart, and then what they are of the dense one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from jlora.quantization.encode import quantize_leaf
from jlora.transform.quantized_weight import LazyWeight, defer, materialize
from jlora.transform.rules.axis_ops import AXIS_OPS
from jlora.transform.rules.deferred_moves import defer_constrain
from jlora.tree.quantized import as_array
from tests.support.adapters.lora_cases import normal
from tests.support.models.encoder_cases import difference

WEIGHT = normal(0, 4, 6, 8)
MOVES = {
    "cast": lambda w: w.astype(jnp.bfloat16),
    "transpose_of_layers": lambda w: jnp.swapaxes(w, 1, 2),
    "reshape_of_layers": lambda w: w.reshape(4, 3, 2, 8),
    "reshape_of_the_stack": lambda w: w.reshape(2, 2, 6, 8),
    "slice_of_both": lambda w: w[1:3, 2:5],
    "strides": lambda w: w[::2, :, 1::3],
    "squeeze": lambda w: jax.lax.squeeze(w[1:2, :, 3:4], (0, 2)),
    "split_of_layers": lambda w: jnp.split(w, 2, axis=2),
    "split_of_the_stack": lambda w: jnp.split(w, [1], axis=0),
    "one_layer": lambda w: jax.lax.squeeze(jax.lax.dynamic_slice(w, (2, 0, 0), (1, 6, 8)), (0,)),
    "kept_from_fusion": jax.lax.optimization_barrier,
    "several": lambda w: jnp.swapaxes(w.astype(jnp.bfloat16)[1:].reshape(3, 48)[:, 8:24].reshape(3, 2, 8), 1, 2),
}
KEPT_APART = {
    "transpose_of_the_stack": lambda w: jnp.swapaxes(w, 0, 1),
    "merged_layers": lambda w: w.reshape(24, 8),
    "a_row_of_each": lambda w: jax.lax.dynamic_slice(w, (0, 2, 0), (4, 1, 8)),
    "product": lambda w: w * 2,
}


def _run(fn, weight):
    """The function's results of a LazyWeight, equation by equation; None where one of them has no rule."""
    jaxpr = jax.make_jaxpr(fn)(jax.ShapeDtypeStruct(weight.shape, weight.dtype)).jaxpr
    env = {jaxpr.invars[0]: weight}
    for eqn in jaxpr.eqns:
        value, *others = [var.val if isinstance(var, core.Literal) else env[var] for var in eqn.invars]
        rule = AXIS_OPS.get(eqn.primitive.name)
        results = rule.defer(value, eqn.params, others) if rule and rule.defer else None
        if results is None:
            return None
        env.update(zip(eqn.outvars, results, strict=True))
    return [env[var] for var in jaxpr.outvars]


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_what_is_put_off_is_what_it_is_of_the_dense_weight(name, kind):
    leaf = quantize_leaf(WEIGHT, kind)
    results = _run(MOVES[name], defer(leaf))
    expected = jax.tree.leaves(MOVES[name](as_array(leaf)))
    for found, dense in zip(results, expected, strict=True):
        assert isinstance(found, LazyWeight)
        assert (found.shape, found.ndim, found.dtype) == (dense.shape, dense.ndim, dense.dtype)
        assert difference(materialize(found).astype(jnp.float32), dense.astype(jnp.float32)) < 1e-6


@pytest.mark.parametrize("name", KEPT_APART)
def test_what_mixes_layers_is_not_put_off(name):
    assert _run(KEPT_APART[name], defer(quantize_leaf(WEIGHT, "int8"))) is None


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_place_on_a_mesh_is_one_of_the_codes(kind):
    mesh = AbstractMesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    leaf = quantize_leaf(normal(0, 3, 128, 8), kind)

    def placed(leaf):
        params = {"sharding": NamedSharding(mesh, PartitionSpec(None, "x", "y")), "unconstrained_dims": set()}
        return defer_constrain(defer(leaf), params, [])[0].leaf

    with jax.sharding.use_abstract_mesh(mesh):
        jaxpr = jax.make_jaxpr(placed)(leaf).jaxpr
    places = {eqn.outvars[0].aval.shape: eqn.params["sharding"].spec for eqn in jaxpr.eqns}
    assert places[leaf.stored.codes.shape] == PartitionSpec(None, "y", "x")  # (layers, outputs, inputs)
    assert set(places) == {x.shape for x in jax.tree.leaves(leaf)}


def test_a_scan_slices_the_codes():
    leaf = quantize_leaf(WEIGHT, "nf4")
    (cast,) = _run(MOVES["transpose_of_layers"], defer(leaf))
    _, layers = jax.lax.scan(lambda _, layer: (None, materialize(layer)), None, cast)
    assert difference(layers, jnp.swapaxes(as_array(leaf), 1, 2)) < 1e-6
