"""Matrix products counted in a program, loops included."""

import jax
import jax.numpy as jnp
import pytest

from train.planning.flops import equations, list_products, matrix_flops, matrix_rate


def _layers(weights, x):
    return jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight), None), x, weights)[0].sum()


def _unrolled(weights, x):
    for weight in weights:
        x = jnp.tanh(x @ weight)
    return x.sum()


def _arguments(layers):
    return jnp.ones((layers, 16, 16)), jnp.ones((8, 16))


def flops(function, *arguments):
    return matrix_flops(jax.jit(function).trace(*arguments).jaxpr)


@pytest.mark.parametrize("layers", [1, 5])
def test_a_loop_counts_as_often_as_it_runs(layers):
    forward = layers * 2 * 8 * 16 * 16
    assert flops(_layers, *_arguments(layers)) == forward
    assert flops(jax.grad(_layers, (0, 1)), *_arguments(layers)) == 3 * forward


def test_without_a_loop_it_is_what_xla_counts():
    """Up to what is no product: XLA counts an addition for each sum of tanh and the like."""
    gradient = jax.jit(jax.grad(_unrolled, (0, 1)))
    xla = gradient.lower(*_arguments(3)).compile().cost_analysis()["flops"]
    ours = flops(gradient, *_arguments(3))
    assert ours <= xla < 1.1 * ours


def test_a_compiled_program_does_the_products_of_its_source():
    """Loops included; the numbers of a product are those of its operands and its result."""
    gradient = jax.jit(jax.grad(_layers, (0, 1)))
    found = list_products(gradient.lower(*_arguments(5)).compile().as_text())
    assert sum(product.flops * product.times for product in found) == flops(gradient, *_arguments(5))
    assert {product.times for product in found} == {5}
    assert {product.numbers for product in found} == {2 * 8 * 16 + 16 * 16}


def test_batched_products_count():
    x = jnp.ones((3, 4, 5))
    assert flops(lambda x: jnp.einsum("bij,bkj->bik", x, x), x) == 2 * 3 * 4 * 4 * 5


def test_recomputation_counts():
    def twice(layer):
        return jax.grad(lambda w, x: layer(w, layer(w, x)).sum())

    def layer(w, x):
        return jnp.tanh(x @ w)

    arguments = jnp.ones((6, 6)), jnp.ones((2, 6))
    assert flops(twice(jax.checkpoint(layer)), *arguments) > flops(twice(layer), *arguments)


def test_all_branches_are_seen():
    def either(x):
        return jax.lax.cond(x.sum() > 0, lambda x: x @ x, lambda x: x, x)

    names = [equation.primitive.name for equation, _ in equations(jax.make_jaxpr(either)(jnp.ones((2, 2))))]
    assert names.count("dot_general") == 1


def test_the_rate_is_that_of_some_machine():
    assert 1e6 < matrix_rate(jnp.float32) < 1e16
