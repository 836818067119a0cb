"""Convolutions: B (1 x 1) of A (a kernel to r channels) is the kernel's update, whatever the layout and the groups."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jlora
from jlora.transform.adapt import find_uses
from jlora.transform.uses import Use
from tests.support.adapters.lora_cases import assert_adapted_is_merged, normal, random_adapter

CONVOLUTIONS = {
    "2-D": ((3, 3, 4, 5), (2, 7, 6, 4), {"window_strides": (1, 1), "padding": "SAME"}),
    "strided, dilated": (
        (3, 2, 4, 5),
        (2, 8, 7, 4),
        {"window_strides": (2, 1), "padding": "VALID", "rhs_dilation": (2, 1)},
    ),
    "groups": ((3, 3, 2, 6), (2, 7, 6, 4), {"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 2}),
    "depthwise": ((3, 3, 1, 8), (2, 7, 6, 4), {"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 4}),
    "transposed": (
        (3, 3, 4, 5),
        (2, 5, 4, 4),
        {"window_strides": (1, 1), "padding": ((2, 1), (1, 1)), "lhs_dilation": (2, 2)},
    ),
}
LAYOUT = ("NHWC", "HWIO", "NHWC")


def _convolution(options):
    return lambda base, x: lax.conv_general_dilated(x, base["conv"]["kernel"], dimension_numbers=LAYOUT, **options)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(("shape", "x_shape", "options"), CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_convolutions(shape, x_shape, options, dora):
    fn, base, x = _convolution(options), {"conv": {"kernel": normal(3, *shape)}}, normal(4, *x_shape)
    adapter = random_adapter(fn, base, x, targets=["conv"], use_dora=dora)
    entry = adapter["conv/kernel"]
    assert (entry.kind, entry.spec) == ("conv", "rcab,rd->abcd")
    assert entry.a.shape == (2, shape[2], *shape[:2])
    assert_adapted_is_merged(fn, base, adapter, x, gradients=not dora)


@pytest.mark.parametrize(
    ("name", "groups"),
    [pytest.param("groups", ["1", "2"], id="in the batch"), pytest.param("depthwise", ["4", "4"], id="formed")],
)
def test_groups_of_an_update(name, groups):
    """Few groups go into the batch; a depthwise kernel's update is the smaller one, and formed."""
    shape, x_shape, options = CONVOLUTIONS[name]
    fn, base, x = _convolution(options), {"conv": {"kernel": normal(3, *shape)}}, normal(4, *x_shape)
    adapter = random_adapter(fn, base, x, targets=["conv"])
    text = jax.jit(jlora.adapt(fn)).lower(base, adapter, x).as_text()
    assert sorted(re.findall(r"feature_group_count = (\d+)", text)) == groups


def test_torchs_layout_and_one_dimension():
    def fn(base, x):
        return lax.conv_general_dilated(x, base["conv"], (2,), "VALID", dimension_numbers=("NCH", "OIH", "NCH"))

    base, x = {"conv": normal(3, 5, 4, 3)}, normal(4, 2, 4, 9)
    assert find_uses(fn, base, x) == {"conv": (Use("conv", (), (1, 2), (0,)),)}
    assert_adapted_is_merged(fn, base, random_adapter(fn, base, x, targets=["conv"]), x)


def test_a_kernel_that_is_flipped_and_transposed_first():
    def fn(base, x):
        kernel = jnp.flip(jnp.swapaxes(base["conv"], 2, 3), (0, 1))
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=LAYOUT)

    base, x = {"conv": normal(3, 3, 3, 5, 4)}, normal(4, 2, 6, 6, 4)
    assert_adapted_is_merged(fn, base, random_adapter(fn, base, x, targets=["conv"]), x)


def test_an_update_over_other_axes_has_no_rule():
    fn, x = _convolution(CONVOLUTIONS["2-D"][2]), normal(4, 2, 7, 6, 4)
    base = {"conv": {"kernel": normal(3, 3, 3, 4, 5)}}
    entry = jlora.LowRank(normal(1, 2, 5), normal(2, 2, 3, 3, 4), jnp.ones(2), "rd,rabc->abcd", (2,))
    with pytest.raises(jlora.JloraError, match=r"^conv/kernel: .*conv_general_dilated"):
        jlora.adapt(fn)(base, {"conv/kernel": entry}, x)
    formed = jlora.adapt(fn, allow_materialize=True)(base, {"conv/kernel": entry}, x)
    assert jnp.allclose(formed, fn(jlora.merge(base, {"conv/kernel": entry}), x), atol=1e-4)


def test_dropout_drops_the_input_of_a():
    fn, base, x = (
        _convolution(CONVOLUTIONS["2-D"][2]),
        {"conv": {"kernel": normal(3, 3, 3, 4, 5)}},
        normal(4, 2, 7, 6, 4),
    )
    adapter = random_adapter(fn, base, x, targets=["conv"], lora_dropout=0.5)
    apply = jax.jit(jlora.adapt(fn))
    first, second = (apply(base, adapter, x, dropout_key=jax.random.key(seed)) for seed in (0, 1))
    assert not jnp.allclose(first, second)
    assert (first == apply(base, adapter, x, dropout_key=jax.random.key(0))).all()
