"""A leaf with its update: factors spread over the leaf's axes, sliced by scans, formed where it must be."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jlora.algebra.merge import update
from jlora.lora.dora import with_magnitude
from jlora.lora.entries import Rows
from jlora.quantization.encode import quantize_leaf
from jlora.transform.adapted_weight import (
    AdaptedWeight,
    Role,
    attach_update,
    compute_dense,
    probed,
    slice_leading,
    watch,
    wrap_quantized,
)
from tests.support.adapters.lora_cases import low_rank, normal
from tests.support.models.encoder_cases import difference


def _dense(value):
    return compute_dense(value) - value.weight


def test_stack_axes_may_stand_anywhere():
    entry = low_rank("bra,brc->abc", (4, 3, 5))
    assert difference(_dense(attach_update("w", normal(3, 4, 3, 5), entry)), update(entry)) < 1e-6


def test_the_role_says_why_a_weight_is_followed():
    entry, weight = low_rank("ra,rb->ab", (4, 3)), normal(3, 4, 3)
    quantized = quantize_leaf(normal(3, 64, 64), "int8", inputs=(0,), stack=0)
    values = {
        Role.ADAPTED: attach_update("w", weight, entry),
        Role.OBSERVED: watch("w", weight),
        Role.PROBED: probed("w", weight, entry, jnp.zeros((4, 4))),
        Role.QUANTIZED: wrap_quantized("w", quantized),
    }
    assert all(value.role is role for role, value in values.items())
    assert wrap_quantized("w", weight) is weight


def test_what_is_observed_or_probed_is_the_weight_alone():
    entry, weight = low_rank("arb,arc->abc", (3, 4, 5)), normal(3, 3, 4, 5)
    for value in (watch("w", weight), probed("w", weight, entry, jnp.zeros((3, 4, 4)))):
        assert difference(compute_dense(value), weight) == 0


def test_a_scan_goes_over_the_leading_axis_of_weight_and_factors():
    entry = low_rank("arb,arc->abc", (3, 4, 5))
    outer, inner = slice_leading(attach_update("w", normal(3, 3, 4, 5), entry))
    assert inner.updates[0].stack == (0,)
    assert inner.updates[0].axes == ((1,), (2,))
    for layer in range(3):
        one = jax.tree.map(lambda leaf, layer=layer: leaf[layer], outer)
        assert isinstance(one, AdaptedWeight)
        assert difference(_dense(one), update(entry)[layer]) < 1e-6


def test_rows_are_components_of_their_own():
    weight, value = normal(3, 6, 4), normal(4, 2, 4)
    rows = attach_update("w", weight, Rows(value, (4, 1)))
    assert difference(compute_dense(rows), weight.at[jnp.array([4, 1])].set(value)) < 1e-6
    same = attach_update("w", weight, Rows(weight[jnp.array([4, 1])], (4, 1)))
    assert (compute_dense(same) == weight).all()


def test_a_gain_stands_on_the_outputs():
    entry = with_magnitude(low_rank("arb,arc->abc", (3, 4, 5)), normal(3, 3, 4, 5))
    value = attach_update("w", normal(3, 3, 4, 5), dataclasses.replace(entry, magnitude=2 * entry.magnitude))
    assert value.gain.shape == (3, 1, 5)
    assert difference(value.gain, 2 * jnp.ones((3, 1, 5))) < 1e-6
