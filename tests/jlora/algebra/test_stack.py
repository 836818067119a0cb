"""Stacked adapters run as each would alone, and come apart bit for bit."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import jlora
from jlora.algebra.merge import update
from jlora.algebra.stack import stack, unstack
from jlora.lora.entries import Rows
from jlora.lora.matrices import Matrices, from_matrices, to_matrices
from tests.support.adapters.lora_cases import low_rank, normal
from tests.support.models.encoder_cases import difference

KERNEL = low_rank("ra,rb->ab", (9, 7))
LAYERS = low_rank("arb,arc->abc", (3, 9, 7))
BASE = {"kernel": normal(1, 9, 7), "layers": normal(2, 3, 9, 7), "bias": normal(3, 7), "table": normal(4, 6, 9)}


def _of_ranks(like, *ranks, seed):
    """The entry with layers of these ranks."""
    layers = [
        Matrices(normal(seed + i, rank, 9), 0.3 * normal(seed + 9 + i, 7, rank), jnp.full((rank,), 1.0 + seed))
        for i, rank in enumerate(ranks)
    ]
    return from_matrices(like, layers)


def _adapters():
    """Three adapters: other ranks, layers left out, a path left out; each with a head and rows of its own."""
    return [
        {"kernel": _of_ranks(KERNEL, 3, seed=1), "layers": _of_ranks(LAYERS, 1, 2, 0, seed=2)},
        {"kernel": _of_ranks(KERNEL, 1, seed=3), "layers": _of_ranks(LAYERS, 0, 4, 4, seed=4)},
        {"layers": _of_ranks(LAYERS, 1, 1, 1, seed=5)},
    ]


def _with_whole(adapters):
    return [
        adapter | {"bias": jlora.Full(normal(20 + i, 7)), "table": Rows(normal(30 + i, 2, 9), (0, 4))}
        for i, adapter in enumerate(adapters)
    ]


def _same(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    return all((x == y).all() for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True))


def _fn(base, x):
    x = jnp.take(base["table"], x, axis=0)
    for layer in base["layers"]:
        x = jnp.tanh(x @ base["kernel"]) @ layer.T
    return x @ base["kernel"] + base["bias"][None]


def test_unstack_is_the_inverse_of_stack():
    for adapters in (_adapters(), _with_whole(_adapters()), _adapters()[:1]):
        back = unstack(stack(adapters))
        assert all(_same(x, y) for x, y in zip(back, adapters, strict=True))


def test_arrays_get_a_leading_axis_and_ranks_stand_one_after_another():
    stacked = stack(_with_whole(_adapters()))
    assert stacked["kernel"].a.shape == (3, 3, 9)
    assert stacked["kernel"].ranks == (3, 1, 0)
    assert stacked["layers"].b.shape == (3, 3, 4, 7)
    assert stacked["layers"].ranks == (1, 2, 0, 0, 4, 4, 1, 1, 1)
    assert stacked["bias"].value.shape == (3, 7)
    assert stacked["table"].value.shape == (3, 2, 9)
    assert not stacked["kernel"].scale[2].any()
    assert [layer.a.shape[0] for layer in to_matrices(stacked["layers"])] == list(stacked["layers"].ranks)


def test_stacked_adapters_run_as_each_alone_and_merged():
    adapters = _with_whole(_adapters())
    xs = jnp.array([[0, 4, 5], [1, 4, 0], [2, 3, 4]])
    run = jax.jit(jax.vmap(lambda adapter, x: jlora.adapt(_fn)(BASE, adapter, x)))
    found = run(stack(adapters), xs)
    for adapter, x, value in zip(adapters, xs, found, strict=True):
        assert difference(value, jlora.adapt(_fn)(BASE, adapter, x)) < 1e-4
        assert difference(value, _fn(jlora.merge(BASE, adapter), x)) < 1e-4


def test_trained_padding_is_cut_off_again():
    """What stands in the padding has no effect, and is not taken for a component."""
    adapters = [{"kernel": _of_ranks(KERNEL, rank, seed=rank)} for rank in (1, 3)]
    stacked = stack(adapters)["kernel"]
    noisy = dataclasses.replace(stacked, a=stacked.a.at[0, 1:].set(7.0))
    assert _same(unstack({"kernel": noisy})[0], adapters[0])


def test_padding_inside_an_entry_outlives_the_way_there_and_back():
    """A stack that `init` draws has numbers in the padding of A."""
    entry = _of_ranks(LAYERS, 1, 3, 0, seed=1)
    entry = dataclasses.replace(entry, a=normal(5, *entry.a.shape))
    adapters = [{"layers": entry}, {"layers": _of_ranks(LAYERS, 5, 5, 5, seed=2)}]
    assert all(_same(x, y) for x, y in zip(unstack(stack(adapters)), adapters, strict=True))


def _dora(entry, path):
    squared = jnp.sum(BASE[path] ** 2, axis=-2)
    return dataclasses.replace(entry, magnitude=normal(8, *squared.shape), squared_norm=squared)


def test_dora_keeps_its_magnitudes_and_is_neutral_where_it_is_missing():
    adapters = [{"kernel": _dora(KERNEL, "kernel")}, {"layers": _dora(LAYERS, "layers")}]
    stacked = stack(adapters)
    neutral = stacked["kernel"]
    assert (neutral.magnitude[1] == jnp.sqrt(neutral.squared_norm[1])).all()
    assert (neutral.squared_norm[1] == neutral.squared_norm[0]).all()
    assert all(_same(x, y) for x, y in zip(unstack(stacked), adapters, strict=True))


def test_stacked_dora_runs_as_each_alone_and_merged():
    adapters = [
        {"kernel": dataclasses.replace(_dora(_of_ranks(KERNEL, rank, seed=rank), "kernel"), magnitude=normal(rank, 7))}
        for rank in (2, 3)
    ]
    adapters.append({})

    def fn(base, x):
        return x @ base["kernel"]

    xs = normal(5, 3, 4, 9)
    found = jax.jit(jax.vmap(lambda adapter, x: jlora.adapt(fn)(BASE, adapter, x)))(stack(adapters), xs)
    for adapter, x, value in zip(adapters, xs, found, strict=True):
        assert difference(value, jlora.adapt(fn)(BASE, adapter, x)) < 1e-5
        assert difference(value, fn(jlora.merge(BASE, adapter), x)) < 1e-4


def test_it_runs_inside_jit():
    adapters = _with_whole(_adapters())
    there_and_back = jax.jit(lambda adapters: unstack(stack(adapters)))(adapters)
    assert all(_same(x, y) for x, y in zip(there_and_back, adapters, strict=True))
    assert difference(update(there_and_back[0]["kernel"]), update(adapters[0]["kernel"])) == 0


FULL = jlora.Full(normal(1, 3, 7))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (KERNEL, LAYERS, r"shape: .* found \(9, 7\) in adapter 0 and \(3, 9, 7\) in adapter 1"),
        (low_rank("ra,rb->ab", (9, 9)), low_rank("rb,ra->ab", (9, 9)), "spec: .* 'ra,rb->ab' .* 'rb,ra->ab'"),
        (KERNEL, dataclasses.replace(KERNEL, kind="lookup"), "kind: .* 'linear' .* 'lookup'"),
        (KERNEL, dataclasses.replace(KERNEL, only="lookup"), "only: .* None .* 'lookup'"),
        (KERNEL, dataclasses.replace(KERNEL, dropout=0.1), "dropout: .* 0.0 .* 0.1"),
        (KERNEL, _dora(KERNEL, "kernel"), "use_dora: .* False .* True"),
        (KERNEL, jax.tree.map(lambda x: x.astype(jnp.bfloat16), KERNEL), "dtype: .*float32.*bfloat16"),
        (KERNEL, jlora.Full(normal(1, 9, 7)), "entry: .* 'LowRank' .* 'Full'"),
        (FULL, None, r"expected all adapters to train it whole or none, found no entry in adapters \[1\]"),
        (None, FULL, r"expected all adapters to train it whole or none, found no entry in adapters \[0\]"),
        (jlora.Full(FULL.value, (0, 1, 2)), jlora.Full(FULL.value, (0, 1, 3)), r"layers: .*\(0, 1, 2\).*\(0, 1, 3\)"),
        (Rows(normal(1, 2, 9), (0, 4)), Rows(normal(1, 2, 9), (0, 5)), r"rows: .*\(0, 4\) .*\(0, 5\)"),
    ],
)
def test_what_cannot_run_together_is_refused(first, second, message):
    adapters = [{} if entry is None else {"w": entry} for entry in (first, second)]
    with pytest.raises(jlora.JloraError, match=f"^w: {message}"):
        stack(adapters)


def test_what_only_one_trains_whole_is_given_to_the_others_as_the_message_says():
    trained = jlora.Full(FULL.value, torch_axes=((1,), (0,)))
    value = normal(2, 3, 7)
    stacked = stack([{"w": trained}, {"w": dataclasses.replace(trained, value=value)}])
    assert difference(unstack(stacked)[1]["w"].value, value) == 0


def test_nothing_and_what_was_never_stacked_are_refused():
    with pytest.raises(jlora.JloraError, match=r"^adapters: expected one at least"):
        stack([])
    with pytest.raises(jlora.JloraError, match=r"^w: expected an entry of jlora.stack with 2 axes .*\(2,\)"):
        unstack({"w": KERNEL})
    two, three = stack([{"w": KERNEL}] * 2), stack([{"v": KERNEL}] * 3)
    with pytest.raises(jlora.JloraError, match=r"^unstack: expected one leading axis .*'w': 2, 'v': 3"):
        unstack({**two, **three})
