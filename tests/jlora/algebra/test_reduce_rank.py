"""Rank reduction: the dense SVD's answer, adapted equals merged, and what it leaves alone."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.algebra.merge import update
from jlora.algebra.reduce_rank import reduce_rank, singular_values
from jlora.lora.matrices import leaf_to_matrices, to_matrices
from tests.support.adapters.lora_cases import low_rank, normal
from tests.support.models.encoder_cases import difference

ENTRIES = {
    "kernel": low_rank("ra,rb->ab", (9, 7)),
    "heads": low_rank("ra,rbc->abc", (9, 2, 4)),
    "layers": low_rank("arb,arc->abc", (3, 9, 7)),
    "convolution": low_rank("rcab,rd->abcd", (2, 2, 4, 7), kind="conv"),
}


def _of_rank(entry, rank):
    """The entry with A and B of another rank, components of its own scale each."""
    stack = entry.scale.shape[:-1]
    a = normal(11, *stack, rank, *entry.a.shape[len(stack) + 1 :])
    b = normal(12, *stack, rank, *entry.b.shape[len(stack) + 1 :])
    scale = jnp.broadcast_to(jnp.linspace(0.5, -2, rank), (*stack, rank))
    return dataclasses.replace(entry, a=a, b=b, scale=scale, ranks=(rank,) * len(entry.ranks))


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_it_is_the_truncated_svd_of_the_full_update(entry, rank):
    entry = _of_rank(entry, 5)
    reduced = reduce_rank({"w": entry}, rank)["w"]
    dense = np.asarray(leaf_to_matrices(entry, update(entry)), np.float64)
    u, s, vh = np.linalg.svd(dense, full_matrices=False)
    expected = (u[..., :rank] * s[:, None, :rank]) @ vh[:, :rank]
    assert difference(leaf_to_matrices(reduced, update(reduced)), expected) < 1e-5
    assert difference(jnp.stack(singular_values(entry)), s[:, :5]) < 1e-5
    assert reduced.shape == entry.shape
    assert set(reduced.ranks) == {rank}
    assert (reduced.scale == 1).all()


def test_a_rank_that_is_large_enough_changes_nothing():
    entry = _of_rank(ENTRIES["layers"], 5)
    same = reduce_rank({"w": entry}, 50)["w"]
    assert same.ranks == entry.ranks
    assert difference(update(same), update(entry)) < 1e-5
    for layer in to_matrices(same):
        assert difference(layer.a @ layer.a.T, np.eye(5)) < 1e-6


def test_components_above_the_smaller_side_are_never_kept():
    wide = _of_rank(ENTRIES["kernel"], 12)
    reduced = reduce_rank({"w": wide}, 12)["w"]
    assert reduced.ranks == (7,)
    assert difference(update(reduced), update(wide)) < 1e-5


def test_energy_keeps_the_fewest_components_with_that_share():
    a, b = np.linalg.qr(np.asarray(normal(1, 9, 4)))[0].T, np.linalg.qr(np.asarray(normal(2, 7, 4)))[0].T
    values = np.sqrt(np.array([[8, 1, 0.6, 0.4], [4, 3, 2, 1]]))
    entry = dataclasses.replace(
        low_rank("arb,arc->abc", (2, 9, 7)),
        a=jnp.asarray(np.stack([a, a]), jnp.float32),
        b=jnp.asarray(np.stack([b, b]) * values[..., None], jnp.float32),
        scale=jnp.ones((2, 4)),
        ranks=(4, 4),
    )
    for energy, ranks in [(0.79, (1, 3)), (0.5, (1, 2)), (0.95, (3, 4)), (1.0, (4, 4)), (1e-6, (1, 1))]:
        reduced = reduce_rank({"w": entry}, energy=energy)["w"]
        assert reduced.ranks == ranks
        kept = [float(jnp.sum(s**2)) / 10 for s in singular_values(reduced)]
        assert all(share >= energy - 1e-5 for share in kept)


def test_axes_that_share_a_rank_keep_what_the_neediest_needs():
    entry = dataclasses.replace(_of_rank(low_rank("abrc,abrd->abcd", (2, 2, 9, 7)), 4), ranks=(4, 4))
    simple = entry.b.at[:, 0, 1:].set(0)  # the first of each pair has rank 1
    reduced = reduce_rank({"w": dataclasses.replace(entry, b=simple)}, energy=0.999999)["w"]
    assert reduced.ranks == (4, 4)


def test_layers_of_rank_zero_and_zero_updates():
    entry = _of_rank(ENTRIES["layers"], 3)
    entry = dataclasses.replace(entry, scale=entry.scale.at[0].set(0).at[1].set(0), ranks=(0, 3, 3))
    for reduced in (reduce_rank({"w": entry}, 2)["w"], reduce_rank({"w": entry}, energy=0.9999999)["w"]):
        assert reduced.ranks[0] == 0
        assert reduced.ranks[1] >= 1
        assert jnp.isfinite(reduced.a).all()
        assert not update(reduced)[:2].any()


def test_adapted_is_merged_after_reduction():
    base = {"kernel": normal(1, 9, 7), "bias": normal(2, 7)}
    entry = _of_rank(ENTRIES["kernel"], 5)
    reduced = reduce_rank({"kernel": entry, "bias": jlora.Full(normal(3, 7))}, 2)

    def fn(base, x):
        return x @ base["kernel"] + base["bias"][None]

    x = normal(4, 6, 9)
    found = jlora.adapt(fn)(base, reduced, x)
    assert difference(found, fn(jlora.merge(base, reduced), x)) < 1e-4
    assert difference(found, jlora.adapt(fn)(base, {"kernel": entry}, x)) > 1e-2


def test_what_is_no_low_rank_update_stays():
    dora = dataclasses.replace(_of_rank(ENTRIES["kernel"], 3), magnitude=normal(5, 7), squared_norm=normal(6, 7) ** 2)
    others = {"bias": jlora.Full(normal(3, 7)), "table": jlora.lora.entries.Rows(normal(3, 2, 4), (1, 5)), "w": dora}
    reduced = reduce_rank(others, 1)
    assert reduced["bias"] is others["bias"]
    assert reduced["table"] is others["table"]
    assert reduced["w"].magnitude is dora.magnitude
    assert reduced["w"].squared_norm is dora.squared_norm


def test_it_runs_inside_jit_and_keeps_dtypes():
    adapter = {"w": jax.tree.map(lambda x: x.astype(jnp.bfloat16), _of_rank(ENTRIES["layers"], 4))}
    reduced = jax.jit(lambda adapter: reduce_rank(adapter, 2))(adapter)["w"]
    assert (reduced.a.dtype, reduced.b.dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert difference(update(reduced), update(reduce_rank(adapter, 2)["w"])) < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "one of rank and energy, found rank None and energy None"),
        ({"rank": 2, "energy": 0.5}, "one of rank and energy"),
        ({"rank": 0}, "rank: expected an integer of at least 1, found 0"),
        ({"rank": 1.5}, "rank: expected an integer of at least 1, found 1.5"),
        ({"energy": 0.0}, r"energy: expected a share in \(0, 1\], found 0.0"),
        ({"energy": 1.1}, r"energy: expected a share in \(0, 1\], found 1.1"),
        ({"energy": float("nan")}, "found nan"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(jlora.JloraError, match=message):
        reduce_rank({}, **arguments)
