"""Adapted equals merged inside of jit, checkpoint, scan, while and cond, and their settings are kept."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import jlora
from jlora.lora.dora import with_magnitude
from jlora.transform import jax_versions
from tests.support.adapters.lora_cases import assert_adapted_is_merged, low_rank, normal, random_adapter
from tests.support.models.encoder_cases import difference

X = normal(4, 4, 5)
STACK = {"layers": {"kernel": normal(3, 3, 5, 5), "bias": normal(5, 3, 5)}}
MATRIX = {"kernel": normal(3, 5, 5)}


def _layer(x, layer):
    x = jnp.tanh(x @ layer["kernel"] + layer["bias"][None])
    return x, x[0]


def _stacked(**options):
    def function(base, x):
        x, rows = lax.scan(_layer, x, base["layers"], **options)
        return jnp.concatenate([x, rows])

    return function


def _recurrent(base, xs):
    def step(state, x):
        state = jnp.tanh(x @ base["kernel"] + state @ base["kernel"].T)
        return state, state

    return lax.scan(step, jnp.zeros(5), xs)[1]


@pytest.mark.parametrize("options", [{}, {"reverse": True}, {"unroll": 2}], ids=str)
def test_scan_over_stacked_weights(options):
    function = _stacked(**options)
    adapter = random_adapter(function, STACK, X, targets=["layers.1", "layers.2"])
    assert adapter["layers/kernel"].ranks == (0, 2, 2)
    assert_adapted_is_merged(function, STACK, adapter, X)


def test_scan_over_pairs_of_layers():
    def function(base, x):
        return lax.scan(lambda x, pair: (lax.scan(_layer, x, pair)[0], None), x, base["layers"])[0]

    base = {"layers": {"kernel": normal(3, 2, 3, 5, 5), "bias": normal(5, 2, 3, 5)}}
    adapter = random_adapter(function, base, X, targets=["layers.0", "layers.1"])
    assert adapter["layers/kernel"].scale.shape == (2, 3, 2)
    assert_adapted_is_merged(function, base, adapter, X)


def test_scan_with_the_weight_as_a_constant():
    assert_adapted_is_merged(_recurrent, MATRIX, {"kernel": low_rank("ra,rb->ab", (5, 5))}, X)


def test_scan_under_jit_checkpoint_and_policy():
    def function(base, x):
        body = jax.checkpoint(jax.jit(_layer), policy=jax.checkpoint_policies.dots_saveable)
        return lax.scan(body, x, base["layers"])[0]

    adapter = random_adapter(function, STACK, X, targets=["layers.0"])
    assert_adapted_is_merged(function, STACK, adapter, X)


def test_while_with_the_weight_in_the_condition_and_in_the_step():
    def function(base, x):
        def goes_on(state):
            return (state[0] < 9) & (jnp.max(jnp.abs(state[1] @ base["kernel"])) < 3)

        return jnp.stack(lax.while_loop(goes_on, lambda s: (s[0] + 1, s[1] + 0.1 * X @ base["kernel"]), (0.0, x))[1:])

    adapter = {"kernel": low_rank("ra,rb->ab", (5, 5))}
    assert_adapted_is_merged(function, MATRIX, adapter, 0 * X, gradients=False)


def test_a_loop_of_known_length_has_gradients():
    def function(base, x):
        return lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ base["kernel"]), x)

    assert_adapted_is_merged(function, MATRIX, random_adapter(function, MATRIX, X, targets="kernel"), X)


@pytest.mark.parametrize("choice", [0, 1, 2])
def test_cond_and_switch(choice):
    def function(base, x, choice):
        x = lax.cond(choice > 0, lambda w: x @ w, lambda w: x, base["kernel"])
        branches = [lambda x: x @ base["kernel"], lambda x: base["kernel"] @ x.T, lambda x: x @ base["kernel"].T]
        return lax.switch(choice, [lambda x, f=f: f(x).reshape(-1) for f in branches], x)

    adapter = {"kernel": low_rank("ra,rb->ab", (5, 5))}
    assert_adapted_is_merged(function, MATRIX, adapter, X, jnp.int32(choice))


def _equation(apply, base, adapter, *names):
    (found,) = (eqn for eqn in jax.make_jaxpr(apply)(base, adapter, X).jaxpr.eqns if eqn.primitive.name in names)
    return found


def test_settings_are_kept():
    adapter = random_adapter(_stacked(), STACK, X, targets=["layers.0"])
    apply = jlora.adapt(_stacked(reverse=True, unroll=3))
    scan = _equation(apply, STACK, adapter, "scan")
    assert (scan.params["reverse"], scan.params["unroll"], scan.params["length"]) == (True, 3, 3)

    @jax.jit
    def named(w, x):
        return x @ w

    low = {"kernel": low_rank("ra,rb->ab", (5, 5))}
    apply = jlora.adapt(lambda base, x: named(base["kernel"], x))
    call = _equation(apply, MATRIX, low, *jax_versions.JIT)
    assert call.params["name"] == "named"

    policy = jax.checkpoint_policies.everything_saveable
    apply = jlora.adapt(lambda base, x: jax.checkpoint(named, prevent_cse=False, policy=policy)(base["kernel"], x))
    call = _equation(apply, MATRIX, low, *jax_versions.CHECKPOINT)
    assert call.params["policy"] is policy
    assert call.params["prevent_cse"] is False


def test_a_scan_is_not_unrolled_and_traced_once():
    """The adapted program is as long for 30 layers as for 3."""

    def length(layers):
        base = {"layers": {"kernel": jnp.zeros((layers, 5, 5)), "bias": jnp.zeros((layers, 5))}}
        adapter = random_adapter(_stacked(), base, X, targets=["layers.0"])
        return str(jax.make_jaxpr(jlora.adapt(_stacked()))(base, adapter, X)).count("\n")

    assert length(30) == length(3)


def test_shardings_of_an_inner_jit_are_refused_not_dropped():
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    inner = jax.jit(lambda w, x: x @ w, in_shardings=(sharding, sharding))
    apply = jlora.adapt(lambda base, x: inner(base["kernel"], x))
    with pytest.raises(jlora.JloraError, match=r"^kernel: expected a jit without shardings.*SingleDeviceSharding"):
        apply(MATRIX, {"kernel": low_rank("ra,rb->ab", (5, 5))}, X)
    assert difference(apply(MATRIX, None, X), X @ MATRIX["kernel"]) < 1e-6


@pytest.mark.parametrize(
    ("function", "where"),
    [
        (lambda base, x: lax.scan(lambda w, row: (2 * w, row @ w), base["kernel"], x)[1], "the carry of scan"),
        (lambda base, x: lax.fori_loop(0, x.shape[0], lambda i, w: 2 * w, base["kernel"]), "the carry of"),
        (lambda base, x: x @ lax.cond(x[0, 0] > 0, lambda w: w, lambda w: w.T, base["kernel"]), "a result of cond"),
        (lambda base, x: lax.scan(lambda c, row: (c, base["kernel"]), 0, x)[1], "a result of scan"),
    ],
)
def test_a_weight_that_a_loop_or_branch_hands_on_is_named(function, where):
    with pytest.raises(jlora.JloraError, match=rf"^kernel: .*{where}.*low-rank rule"):
        jlora.adapt(function)(MATRIX, {"kernel": low_rank("ra,rb->ab", (5, 5))}, X)


def test_leaves_that_are_not_adapted_may_be_handed_on():
    """A learned first state of a loop is no hindrance to adapting the weights."""

    def function(base, xs):
        def step(state, x):
            return jnp.tanh(x @ base["kernel"] + state), base["start"]

        chosen = lax.cond(xs[0, 0] > 0, lambda: base["start"], lambda: -base["start"])
        state, starts = lax.scan(step, chosen, xs)
        return state + starts.sum(0)

    base = MATRIX | {"start": normal(6, 5)}
    assert_adapted_is_merged(function, base, random_adapter(function, base, X, targets=["kernel"]), X)


def test_shard_map():
    """One device here; the axis names, the specs of the factors and psum are what counts."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("model",))

    def fn(base, x):
        product = jax.shard_map(
            lambda w, v, x: jax.lax.psum(jnp.tanh(x @ v) @ w, "model"),
            mesh=mesh,
            in_specs=(P("model", None), P(None, "model"), P()),
            out_specs=P(),
        )
        return product(base["w"], base["v"], x)

    base, x = {"w": normal(1, 6, 3), "v": normal(2, 4, 6)}, normal(3, 5, 4)
    adapter = random_adapter(fn, base, x, targets=["w", "v"], lora_dropout=0.5)
    assert_adapted_is_merged(fn, base, adapter, x)
    dora = {path: with_magnitude(entry, base[path]) for path, entry in adapter.items()}
    assert_adapted_is_merged(fn, base, dora, x, gradients=False)
    apply = jax.jit(jlora.adapt(fn))
    first, second = (apply(base, adapter, x, dropout_key=jax.random.key(seed)) for seed in (0, 1))
    assert not jnp.allclose(first, second)
