"""The names in `compat` are those of the JAX that runs."""

import jax
import jax.numpy as jnp
from jax import lax

from jlora.transform import jax_versions


def _only_equation(fn, *args):
    (eqn,) = jax.make_jaxpr(fn)(*args).jaxpr.eqns
    return eqn


def test_primitives_go_by_these_names():
    assert _only_equation(jax.jit(jnp.sin), 1.0).primitive.name in jax_versions.JIT
    assert _only_equation(jax.checkpoint(jnp.sin), 1.0).primitive.name in jax_versions.CHECKPOINT


def test_the_operands_of_a_scan_are_constants_carry_and_what_it_goes_over():
    const, carry, over = jnp.ones(2), jnp.ones(3), jnp.ones((4, 5))
    eqn = _only_equation(lambda x, y, z: lax.scan(lambda c, row: (c * x[0], row[0]), y, z), const, carry, over)
    shapes = [[var.aval.shape for var in part] for part in jax_versions.scan_parts(eqn.params, eqn.invars)]
    assert shapes == [[(2,)], [(3,)], [(4, 5)]]


def test_a_jaxpr_comes_with_its_constants():
    array = jnp.arange(3.0)
    closed = jax.make_jaxpr(lambda x: x + array)(array)
    assert jax_versions.split_closed_jaxpr(closed) == (closed.jaxpr, tuple(closed.consts))
    open_jaxpr = closed.jaxpr.replace(constvars=[], invars=[*closed.jaxpr.constvars, *closed.jaxpr.invars])
    assert jax_versions.split_closed_jaxpr(open_jaxpr)[1] == ()
