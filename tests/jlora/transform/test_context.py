"""LoRA dropout: on with a key, exact without; no two layers, uses or iterations share a mask."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jlora
from tests.support.adapters.lora_cases import low_rank, normal, randomized
from tests.support.models.encoder_cases import difference

X = normal(4, 8, 6)
KEY = jax.random.key(3)
# Of a zero weight only the update is seen.
BASE = {"w": jnp.zeros((6, 5)), "v": jnp.zeros((6, 5))}
ENTRY = low_rank("ra,rb->ab", (6, 5), dropout=0.5)
SAME = {"w": ENTRY, "v": ENTRY}


def _masked(function, key=KEY, base=BASE, adapter=SAME):
    return np.asarray(jlora.adapt(function)(base, adapter, X, dropout_key=key))


def test_without_a_key_the_result_is_exact():
    def function(base, x):
        return x @ base["w"]

    without = {"w": dataclasses.replace(ENTRY, dropout=0.0)}
    expected = jlora.adapt(function)(BASE, without, X)
    assert (jlora.adapt(function)(BASE, {"w": ENTRY}, X) == expected).all()
    assert (jlora.adapt(function)(BASE, without, X, dropout_key=KEY) == expected).all()
    assert (_masked(function) != np.asarray(expected)).any()


def test_the_key_alone_decides():
    def function(base, x):
        return x @ base["w"]

    assert (_masked(function) == _masked(function)).all()
    assert (_masked(function) != _masked(function, jax.random.key(4))).any()
    assert (_masked(function) == _masked(function, jax.random.PRNGKey(3))).all()


STACKED = {"w": jnp.zeros((3, 6, 5))}
STACKED_SAME = {
    "w": jlora.LowRank(
        *(jnp.broadcast_to(leaf, (3, *leaf.shape)) for leaf in (ENTRY.a, ENTRY.b, ENTRY.scale)),
        spec="arb,arc->abc",
        ranks=(2, 2, 2),
        dropout=0.5,
    )
}


def _while(base, x, last=None):
    """The products of three steps; it ends early where the condition's own product is `last`."""

    def goes_on(state):
        return (state[0] < 3) & (True if last is None else jnp.any(x @ base["w"] != last))

    def step(state):
        index, outs = state
        return index + 1, outs.at[index].set(x @ base["w"])

    return lax.while_loop(goes_on, step, (0, jnp.zeros((3, 8, 5))))[1]


@pytest.mark.parametrize(
    ("function", "base", "adapter"),
    [
        (lambda base, x: jnp.stack([x @ base["w"], x @ base["w"], x @ base["v"]]), BASE, SAME),
        (lambda base, x: lax.scan(lambda c, w: (c, x @ w), 0, base["w"])[1], STACKED, STACKED_SAME),
        (lambda base, x: lax.scan(lambda c, _: (c, x @ base["w"]), 0, length=3)[1], BASE, SAME),
        (_while, BASE, SAME),
        (lambda base, x: jnp.stack([jax.jit(jnp.matmul)(x, base["w"]) for _ in range(3)]), BASE, SAME),
        (lambda base, x: jnp.stack([jax.checkpoint(jnp.matmul)(x, base["w"]) for _ in range(3)]), BASE, SAME),
        (
            lambda base, x: jnp.stack([lax.cond(x[0, 0] > 9, jnp.dot, jnp.matmul, x, base["w"]) for _ in range(3)]),
            BASE,
            SAME,
        ),
    ],
    ids=["uses", "layers of a scan", "steps of a scan", "steps of a while", "jit", "checkpoint", "cond"],
)
def test_masks_differ(function, base, adapter):
    updates = _masked(function, base=base, adapter=adapter)
    for first in range(len(updates)):
        assert updates[first].any()
        for second in range(first):
            assert (updates[first] != updates[second]).any()


def test_the_condition_of_a_while_has_masks_of_its_own():
    first = _masked(_while)[0]
    assert _masked(lambda base, x: _while(base, x, last=first))[0].any()


def test_dropout_is_unbiased():
    def function(base, x):
        return jnp.tanh(x) @ base["w"]

    apply = jlora.adapt(function)
    keys = jax.random.split(KEY, 4000)
    mean = jax.jit(lambda: jax.vmap(lambda key: apply(BASE, SAME, X, dropout_key=key))(keys).mean(0))()
    assert difference(mean, apply(BASE, SAME, X)) < 0.05


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda fn: jax.jit(jax.checkpoint(fn))])
def test_what_is_nested_and_runs_once_has_the_masks_that_it_has_unnested(wrap):
    def outer(product):
        return lambda base, x: jnp.stack([x @ base["w"], product(x, base["w"]), x @ base["w"]])

    assert (_masked(outer(wrap(jnp.dot))) == _masked(outer(jnp.dot))).all()


@pytest.mark.parametrize("wrap", [lambda fn: fn, jax.checkpoint], ids=["plain", "checkpoint"])
def test_the_backward_pass_sees_the_masks_of_the_forward_pass(wrap):
    """The update is linear in A and in B for one mask, so each is the product of itself and its gradient."""

    def loss(adapter):
        return jnp.sum(jlora.adapt(wrap(lambda base, x: x @ base["w"]))(BASE, adapter, X, dropout_key=KEY))

    value, gradient = jax.value_and_grad(loss)({"w": ENTRY})
    assert difference(jnp.vdot(gradient["w"].b, ENTRY.b), value) < 1e-5
    assert difference(jnp.vdot(gradient["w"].a, ENTRY.a), value) < 1e-5


def test_lookups_are_not_dropped():
    """As in PEFT: its embeddings ignore lora_dropout."""
    apply, ids = jlora.adapt(lambda base, ids: base["w"][ids]), jnp.array([1, 2])
    adapter = randomized({"w": ENTRY})
    assert (apply(BASE, adapter, ids, dropout_key=KEY) == apply(BASE, adapter, ids)).all()
