"""The layers of an entry as matrices: there and back bit for bit, and the same update."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jlora.algebra.merge import update
from jlora.lora.matrices import Matrices, from_matrices, layer_ranks, leaf_from_matrices, leaf_to_matrices, to_matrices
from tests.support.adapters.lora_cases import low_rank, normal
from tests.support.models.encoder_cases import difference

ENTRIES = {
    "kernel": low_rank("ra,rb->ab", (5, 3)),
    "torch's order": low_rank("rb,ra->ab", (3, 5)),
    "heads": low_rank("ra,rbc->abc", (5, 2, 3)),
    "output of heads": low_rank("rab,rc->abc", (2, 3, 5)),
    "layers": low_rank("arb,arc->abc", (4, 5, 3)),
    "layers of experts": dataclasses.replace(low_rank("abrc,abrd->abcd", (2, 3, 5, 4)), ranks=(2, 2)),
    "convolution": low_rank("rcab,rd->abcd", (3, 2, 4, 5), kind="conv"),
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_the_matrices_product_is_the_update(entry):
    found = jnp.stack([layer.update for layer in to_matrices(entry)])
    assert difference(found, leaf_to_matrices(entry, update(entry))) < 1e-6
    assert difference(leaf_from_matrices(entry, found), update(entry)) < 1e-6


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_there_and_back_is_the_same(entry):
    back = from_matrices(entry, to_matrices(entry))
    assert jax.tree.structure(back) == jax.tree.structure(entry)
    assert all((x == y).all() for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(entry), strict=True))
    leaf = normal(3, *entry.shape)
    assert (leaf_from_matrices(entry, leaf_to_matrices(entry, leaf)) == leaf).all()


def test_a_leafs_matrices_are_in_torchs_layout():
    leaf = normal(3, 4, 5, 3)
    assert (leaf_to_matrices(ENTRIES["layers"], leaf) == leaf.transpose(0, 2, 1)).all()
    kernel = normal(3, 3, 2, 4, 5)  # (h, w, in, out); torch's is (out, in, h, w)
    expected = kernel.transpose(3, 2, 0, 1).reshape(1, 5, -1)
    assert (leaf_to_matrices(ENTRIES["convolution"], kernel) == expected).all()


def test_padding_is_left_out_and_put_back():
    layers = [Matrices(normal(rank, rank, 5), normal(9, 3, rank), normal(8, rank)) for rank in (0, 3, 1, 2)]
    entry = from_matrices(ENTRIES["layers"], layers)
    assert entry.ranks == (0, 3, 1, 2)
    assert entry.a.shape == (4, 3, 5)
    assert not entry.a[0].any()
    assert not entry.scale[2, 1:].any()
    for found, expected in zip(to_matrices(entry), layers, strict=True):
        assert all((x == y).all() for x, y in zip(found, expected, strict=True))


def test_axes_behind_that_of_the_layers_share_its_ranks():
    entry = dataclasses.replace(ENTRIES["layers of experts"], ranks=(2, 1))
    assert layer_ranks(entry) == [2, 2, 2, 1, 1, 1]
    assert [layer.a.shape for layer in to_matrices(entry)] == [(2, 5)] * 3 + [(1, 5)] * 3
    assert from_matrices(entry, to_matrices(entry)).ranks == (2, 1)


def test_the_update_of_half_precision_is_formed_in_float32():
    layer = to_matrices(ENTRIES["kernel"])[0]
    half = Matrices(layer.a.astype(jnp.bfloat16), layer.b.astype(jnp.bfloat16), layer.scale)
    a, b, scale = (np.asarray(x, np.float64) for x in half)
    assert half.update.dtype == jnp.float32
    assert difference(half.update, (b * scale) @ a) < 1e-6
