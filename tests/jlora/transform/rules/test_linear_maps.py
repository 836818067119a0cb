"""A linear map of a weight with updates is that map of their sum; what mixes A's and B's axes has no rule."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import jlora
from jlora.errors import JloraError
from jlora.transform.adapt import find_uses
from jlora.transform.adapted_weight import AdaptedWeight, attach_update, compute_dense
from jlora.transform.context import Context
from jlora.transform.interpreter import evaluate_jaxpr
from jlora.transform.uses import Use
from tests.support.adapters.lora_cases import assert_adapted_is_merged, low_rank, normal
from tests.support.models.encoder_cases import difference

GAIN = 1 + 0.3 * normal(7, 5)
ROWS = 1 + 0.3 * normal(8, 4)
MASK = jnp.array([True, False, True, True])

MAPS = {
    "negated": lambda w: -w,
    "by a number": lambda w: 3 * w / 2,
    "by a number that is an array": lambda w: w * GAIN[0],
    "gain per output": lambda w: w * GAIN[None, None],
    "gain per input": lambda w: ROWS[:, None, None] * w,
    "divided per input": lambda w: w / ROWS[:, None, None],
    "gain spread before": lambda w: w * jnp.broadcast_to(GAIN, w.shape),
    "mask per input": lambda w: jnp.where(MASK[:, None, None], w, 0),
    "mask for all": lambda w: jnp.where(True, w, 0),
    "another number where masked": lambda w: jnp.where(MASK[:, None, None], w, 7.5),
    "masked where true": lambda w: jnp.where(MASK[:, None, None], 0, w),
    "one of two": lambda w: jnp.where(MASK[:, None, None], w, w[::-1]),
    "joined on inputs": lambda w: jnp.concatenate([w, jnp.ones((2, 3, 5)), w], 0),
    "joined on outputs": lambda w: jnp.concatenate([w[:, :1], w], 1),
    "stacked": lambda w: jnp.stack([w, 2 * w], 1),
    "rolled": lambda w: jnp.roll(w, 2, 2),
    "padded": lambda w: jnp.pad(w, ((0, 0), (2, 1), (0, 3))),
    "padded on inputs": lambda w: jnp.pad(w, ((1, 2), (0, 0), (0, 0)), constant_values=3),
    "padded inside": lambda w: lax.pad(w, jnp.float32(0), ((0, 0, 0), (0, 0, 2), (1, -1, 0))),
    "one place, padded": lambda w: jnp.pad(w[1:2], ((1, 2), (0, 0), (0, 0))),
    "tiled": lambda w: jnp.tile(w, (2, 1, 3)),
    "repeated": lambda w: jnp.repeat(w, 3, axis=1),
}


def _mapped(fn, value):
    return evaluate_jaxpr(Context(None), jax.make_jaxpr(fn)(value.weight), [value])[0]


@pytest.mark.parametrize("spec", ["ra,rbc->abc", "rc,rab->abc", "arb,arc->abc"])
@pytest.mark.parametrize("name", MAPS)
def test_the_map_of_the_sum(name, spec):
    value = attach_update("w", normal(3, 4, 3, 5), low_rank(spec, (4, 3, 5)))
    found = _mapped(MAPS[name], value)
    assert isinstance(found, AdaptedWeight)
    assert (found.weight == MAPS[name](value.weight)).all()
    assert difference(compute_dense(found), MAPS[name](compute_dense(value))) < 1e-6


@pytest.mark.parametrize("name", MAPS)
def test_a_gain_goes_with_the_weight(name):
    gain = 1 + 0.1 * jnp.abs(normal(5, 1, 3, 5))
    value = dataclasses.replace(attach_update("w", normal(3, 4, 3, 5), low_rank("ra,rbc->abc", (4, 3, 5))), gain=gain)
    if name == "one of two":
        with pytest.raises(JloraError, match="no low-rank rule"):
            _mapped(MAPS[name], value)
        return
    found = _mapped(MAPS[name], value)
    assert difference(compute_dense(found), MAPS[name](compute_dense(value))) < 1e-6
    assert found.gain.shape[0] == 1 or name == "joined on inputs", "no product takes a gain that varies over A's axes"


@pytest.mark.parametrize(
    "fn", [lambda w: w * normal(9, 4, 5), lambda w: jnp.tril(w), lambda w: w * w, lambda w: 1 / w], ids=range(4)
)
def test_what_mixes_the_axes_of_both_factors_has_no_rule(fn):
    value = attach_update("w", normal(3, 4, 5), low_rank("ra,rb->ab", (4, 5)))
    with pytest.raises(JloraError, match=r"^w: .*no low-rank rule"):
        _mapped(fn, value)


def _uses(fn, shapes, x):
    return find_uses(fn, {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}, x)


@pytest.mark.parametrize(
    ("fn", "uses"),
    [
        (lambda b, x: x @ (b["w"] * b["scale"][None]), {"w": Use("linear", (), (0,), (1,)), "scale": Use("mul")}),
        (lambda b, x: (x * b["scale"]) @ b["w"], {"w": Use("linear", (), (0,), (1,)), "scale": Use("mul")}),
        (lambda b, x: b["table"] * x[:, None] + b["w"], {"w": Use("add"), "table": Use("add")}),
        (
            lambda b, x: x @ jnp.concatenate([b["w"], b["table"]], 1),
            {name: Use("linear", (), (0,), (1,)) for name in ("w", "table")},
        ),
        (lambda b, x: jnp.concatenate([x[None], b["w"]]) @ b["table"], {"w": Use("concatenate")}),
        (
            lambda b, x: b["w"] @ b["table"],
            {"w": Use("linear", (), (1,), (0,)), "table": Use("linear", (), (0,), (1,))},
        ),
    ],
    ids=range(6),
)
def test_data_and_vectors_are_told_from_weights(fn, uses):
    """A scale times one row, or tokens beside the data, are no linear maps of a weight."""
    found = _uses(fn, {"w": (5, 5), "table": (5, 5), "scale": (5,)}, normal(1, 5))
    for name, use in uses.items():
        assert found[name] == (use,), name


def test_weights_joined_on_the_axis_that_is_contracted():
    def fn(base, x):
        return x @ jnp.concatenate([base["w"], base["plain"], 2 * base["v"]])

    base = {"w": normal(1, 5, 3), "v": normal(2, 4, 3), "plain": normal(3, 2, 3)}
    adapter = {name: low_rank("ra,rb->ab", base[name].shape) for name in ("w", "v")}
    assert_adapted_is_merged(fn, base, adapter, normal(4, 6, 11))


def test_convolutions_with_gained_and_joined_kernels():
    def fn(base, x):
        kernel = jnp.concatenate([base["w"] * GAIN[None, None, None], base["v"]], 3)
        return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    base, x = {"w": normal(1, 3, 3, 4, 5), "v": normal(2, 3, 3, 4, 2)}, normal(4, 2, 5, 5, 4)
    adapter = jlora.init(
        jax.random.key(0), jlora.LoraConfig(r=2, target_modules=["w", "v"], init_lora_weights=False), base, fn, x
    )
    assert_adapted_is_merged(fn, base, adapter, x)


def test_a_join_of_tables_and_a_lookup():
    def fn(base, ids):
        return jnp.concatenate([base["old"], base["new"]])[ids]

    base, ids = {"old": normal(1, 5, 3), "new": normal(2, 2, 3)}, jnp.array([[0, 6], [5, 4]])
    adapter = {name: low_rank("ra,rb->ab", base[name].shape) for name in base}
    assert_adapted_is_merged(fn, base, adapter, ids)
