"""The chunked cross-entropy is the plain formula, value and gradients, in a tenth of its memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jlora.sharding.mesh import AXES
from tests.support.adapters.lora_cases import normal
from train.lm.loss import next_token_sums


def _logits(trainable, frozen, hidden, chunk=None):
    return (hidden @ frozen["head"] + (hidden @ trainable["a"]) @ trainable["b"]).astype(jnp.float32)


def _plain(trainable, frozen, hidden, targets, weights):
    logits = _logits(trainable, frozen, hidden)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(losses * weights), jnp.sum(jnp.where(jnp.argmax(logits, -1) == targets, weights, 0))


def _case(rows, length, width, words, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    targets = jnp.asarray(rng.integers(0, words, (rows, length)), jnp.int32)
    weights = jnp.asarray(rng.random((rows, length)) < 0.7, jnp.float32)
    trainable = {"a": normal(1, width, 3), "b": normal(2, 3, words)}
    frozen = {"head": normal(3, width, words)}
    cast = jax.tree.map(lambda x: x.astype(dtype), (trainable, frozen, normal(4, rows, length, width)))
    return (*cast, targets, weights)


@pytest.mark.parametrize(("rows", "length"), [(3, 11), (4, 200), (300, 2)])
def test_it_is_the_plain_formula_with_its_gradients(rows, length):
    """One chunk, several with a filled one, and more rows than a chunk takes."""
    case = _case(rows, length, 8, 30)
    sums = jax.jit(next_token_sums, static_argnums=0)(_logits, *case)
    loss, correct = _plain(*case)
    np.testing.assert_allclose(sums.loss, loss, rtol=1e-6)
    assert sums.correct == correct

    def of(fn):
        return jax.jit(jax.grad(lambda t, h: 3.0 * fn(t, case[1], h, *case[3:])[0], (0, 1)))(case[0], case[2])

    found, expected = of(lambda *args: next_token_sums(_logits, *args)), of(_plain)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_bfloat16_hidden_states_get_bfloat16_gradients():
    case = _case(2, 9, 8, 30, jnp.bfloat16)
    grads = jax.grad(lambda t, h: next_token_sums(_logits, t, case[1], h, *case[3:]).loss, (0, 1))(case[0], case[2])
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(jnp.bfloat16)}


def test_it_takes_a_tenth_of_the_plain_formulas_memory():
    """Temporaries of loss and gradient for 4 x 1024 tokens and 49,152 words, compiled, nothing computed."""
    shapes = jax.eval_shape(lambda: _case_of_zeros(4, 1024, 64, 49152))

    def temporaries(fn):
        grad = jax.grad(lambda t, f, h, *rest: fn(t, f, h, *rest)[0], (0, 2))
        return jax.jit(grad).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    ours, plain = temporaries(lambda *args: next_token_sums(_logits, *args)), temporaries(_plain)
    assert plain > 4 * 1024 * 49152 * 4
    assert ours < plain / 10


def _case_of_zeros(rows, length, width, words):
    trainable, frozen = {"a": jnp.zeros((width, 3)), "b": jnp.zeros((3, words))}, {"head": jnp.zeros((width, words))}
    tokens = jnp.zeros((rows, length), jnp.int32)
    return trainable, frozen, jnp.zeros((rows, length, width)), tokens, jnp.zeros((rows, length))


def test_devices_that_share_the_rows_form_as_many_logits_each():
    """Four parts of a batch of 32 rows take the chunks of one part of 8: the head is read no more often."""

    def formed(rows):
        """The axes (rows, tokens) of the chunks."""
        seen = []

        def logits(trainable, frozen, hidden, chunk):
            seen.append(hidden.shape[:2])
            return _logits(trainable, frozen, hidden)

        jax.eval_shape(lambda *case: next_token_sums(logits, *case), *_case(rows, 200, 8, 30))
        return seen[0]

    mesh = jax.sharding.AbstractMesh((2, 2, 1), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
    alone = formed(8)
    with jax.sharding.use_abstract_mesh(mesh):
        assert formed(32) == (32, alone[1])
    assert formed(32) == (32, -(-alone[1] // 4))
