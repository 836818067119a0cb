"""What holds for every function of tests/support/functions, adapted on all its weights, with LoRA and with DoRA.

The dense answer that the laws compare with is computed here: the weights in float64 by the papers' formulas, the
gradient of the plain function with respect to them, and its projection on each factor.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jlora
from jlora.initialization.abstract_adapter import abstract_adapter
from jlora.peft.tensor_keys import from_peft, to_peft
from jlora.tree.leaf_paths import leaves_by_path, replace_leaves
from jlora.tree.module_names import is_stacked
from tests.support.adapters import lora_cases
from tests.support.functions.every_function import FUNCTIONS, is_weight, normal
from tests.support.models.encoder_cases import difference

all_functions = pytest.mark.parametrize("name", FUNCTIONS)

QUICK = {"xla_backend_optimization_level": 0}
"""Tiny programs that run once: what counts is how long they compile."""
AS_USERS = {"xla_backend_optimization_level": 3}
"""XLA's default, which the suite lowers (conftest.py)."""


@functools.cache
def random_adapter(name: str) -> dict[str, jlora.LowRank]:
    """A LowRank for each weight, all random but the scale: 3 / 2."""
    case = FUNCTIONS[name]()
    config = jlora.LoraConfig(r=2, lora_alpha=3, target_modules=".*", **case.fields)
    adapter = lora_cases.randomized(abstract_adapter(config, case.base, case.fn, *case.args))
    assert adapter.keys() == {path for path in leaves_by_path(case.base) if is_weight(path)}
    return adapter


@functools.cache
def dense_program(name: str) -> Callable:
    """base -> (value, its weighted sum's gradient with respect to the base) of the plain function."""
    case = FUNCTIONS[name]()
    return _program(case.fn, case.args, case.differentiable)


@functools.cache
def adapted_program(name: str) -> Callable:
    """adapter -> (value, its weighted sum's gradient with respect to the adapter) of the adapted function."""
    case = FUNCTIONS[name]()
    run = _program(lambda adapter, base: jlora.adapt(case.fn)(base, adapter, *case.args), (), case.differentiable)
    return lambda adapter: run(adapter, case.base)  # an argument, not a constant, as in the dense program


def _program(function: Callable, args: tuple, differentiable: bool) -> Callable:
    def loss(variables, *rest):
        value = function(variables, *rest, *args)
        return jnp.sum(value * normal(7, *value.shape)), value

    def run(variables, *rest):
        if not differentiable:
            return function(variables, *rest, *args), {}
        gradient, value = jax.grad(loss, has_aux=True)(variables, *rest)
        return value, gradient

    return jax.jit(run, compiler_options=QUICK)


class Dense:
    """One weight W with its update by the papers' formulas, in float64, and the chain rule back to the factors.

    LoRA: V = W + A (s B). DoRA: m V / |V|, |V| over the axes that the function contracts, taken as a constant.
    """

    def __init__(self, leaf: Any, entry: jlora.LowRank):
        self.entry = entry
        self.factors, self.out = entry.spec.split("->")
        self.a_letters, self.b_letters = self.factors.split(",")
        scale = np.asarray(entry.scale, np.float64)
        self.a, self.b = (np.asarray(factor, np.float64) for factor in (entry.a, entry.b))
        self.scale = scale.reshape(*scale.shape, *[1] * (self.b.ndim - scale.ndim))
        total = np.asarray(leaf, np.float64) + np.einsum(f"{self.factors}->{self.out}", self.a, self.scale * self.b)
        self.axes = inputs_of(entry)
        self.direction, self.gain = total, np.float64(1)
        if entry.magnitude is not None:
            norm = np.sqrt(np.sum(total**2, axis=self.axes, keepdims=True))
            self.direction = total / norm
            self.gain = np.expand_dims(np.asarray(entry.magnitude, np.float64), self.axes) / norm
        self.value = total * self.gain

    def projected(self, gradient: Any) -> dict[str, np.ndarray]:
        """dL/dW on the factors."""
        gradient = np.asarray(gradient, np.float64)
        found = {
            "a": np.einsum(f"{self.out},{self.b_letters}->{self.a_letters}", gradient * self.gain, self.scale * self.b),
            "b": self.scale * np.einsum(f"{self.out},{self.a_letters}->{self.b_letters}", gradient * self.gain, self.a),
        }
        if self.entry.magnitude is not None:
            found["magnitude"] = np.sum(gradient * self.direction, axis=self.axes)
        return found


def dense_weights(name: str, adapter: dict[str, jlora.LowRank]) -> dict[str, Dense]:
    """{path: the weight with its update} for the function's base."""
    leaves = leaves_by_path(FUNCTIONS[name]().base)
    return {path: Dense(leaves[path], entry) for path, entry in adapter.items()}


def inputs_of(entry: jlora.LowRank) -> tuple[int, ...]:
    """The axes of the leaf that A has and B has not: what the function contracts, or looks up."""
    (a, b), out = entry.spec.split("->")[0].split(","), entry.spec.split("->")[1]
    return tuple(out.index(letter) for letter in out if letter in a and letter not in b)


def with_magnitude(name: str, adapter: dict[str, jlora.LowRank]) -> dict[str, jlora.LowRank]:
    """The adapter with DoRA's fresh magnitudes: the norms of the base's weights."""
    changed, leaves = {}, leaves_by_path(FUNCTIONS[name]().base)
    for path, entry in adapter.items():
        squared = np.sum(np.asarray(leaves[path]) ** 2, axis=inputs_of(entry))
        fields = {"magnitude": jnp.asarray(np.sqrt(squared)), "squared_norm": jnp.asarray(squared)}
        changed[path] = dataclasses.replace(entry, **fields)
    return changed


def trained_magnitude(name: str, adapter: dict[str, jlora.LowRank]) -> dict[str, jlora.LowRank]:
    """The adapter with magnitudes away from the norms."""
    entries = with_magnitude(name, adapter)
    for seed, (path, entry) in enumerate(entries.items()):
        factor = 1 + 0.3 * np.tanh(np.asarray(normal(seed, *entry.magnitude.shape)))
        entries[path] = dataclasses.replace(entry, magnitude=entry.magnitude * factor)
    return entries


def zeroed(adapter: dict[str, jlora.LowRank]) -> dict[str, jlora.LowRank]:
    """The adapter as a fresh one: a lookup's A is zero, everything else's B."""
    fresh = {}
    for path, entry in adapter.items():
        factor = "a" if entry.kind == "lookup" else "b"
        zeros = jnp.asarray(np.zeros(getattr(entry, factor).shape, np.float32))
        fresh[path] = dataclasses.replace(entry, **{factor: zeros})
    return fresh


def half(tree: Any) -> Any:
    """The tree with its floats in bfloat16."""
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x, jnp.bfloat16)) if x.dtype == jnp.float32 else x, tree)


VARIANTS = {
    "lora": lambda name: random_adapter(name),
    "dora": lambda name: trained_magnitude(name, random_adapter(name)),
}
all_variants = pytest.mark.parametrize("variant", VARIANTS)


@all_functions
@all_variants
def test_adapted_is_merged_and_its_gradient_is_the_dense_one_projected(variant, name):
    case, adapter = FUNCTIONS[name](), VARIANTS[variant](name)
    weights = dense_weights(name, adapter)
    merged = {path: jnp.asarray(np.asarray(weight.value, np.float32)) for path, weight in weights.items()}
    expected, expected_gradient = dense_program(name)(replace_leaves(case.base, merged))
    found, found_gradient = adapted_program(name)(adapter)
    assert found.dtype == expected.dtype
    assert difference(found, expected) < 1e-5
    assert difference(dense_program(name)(case.base)[0], expected) > 1e-3, "the adapter changes nothing"
    for path, entry in found_gradient.items():
        for factor, gradient in weights[path].projected(leaves_by_path(expected_gradient)[path]).items():
            assert difference(getattr(entry, factor), gradient) < 1e-4, (path, factor)
        assert not np.asarray(entry.scale).any()
        assert entry.squared_norm is None or not np.asarray(entry.squared_norm).any()


@all_functions
def test_a_fresh_adapter_changes_no_bit(name):
    """Operation by operation: compiled, XLA:CPU may fuse a product this narrow with a sum, and round otherwise."""
    case, fresh = FUNCTIONS[name](), zeroed(random_adapter(name))
    with jax.disable_jit():
        expected = np.asarray(case.fn(case.base, *case.args))
        for adapter in (fresh, with_magnitude(name, fresh)):
            found = np.asarray(jlora.adapt(case.fn)(case.base, adapter, *case.args))
            assert (found.dtype, found.tobytes()) == (expected.dtype, expected.tobytes()), difference(found, expected)


@all_functions
def test_half_precision_compute_over_float32_adapters(name):
    case, adapter = FUNCTIONS[name](), random_adapter(name)
    base, args = half(case.base), half(case.args)
    found = jax.jit(jlora.adapt(case.fn), compiler_options=QUICK)(base, adapter, *args)
    weights = dense_weights(name, adapter)
    merged = {path: jnp.asarray(np.asarray(weight.value, np.float32)) for path, weight in weights.items()}
    expected, _ = dense_program(name)(replace_leaves(case.base, merged))
    assert found.dtype == jax.eval_shape(case.fn, base, *args).dtype
    assert difference(np.asarray(found, np.float32), expected) < 2e-2


@all_functions
@all_variants
def test_merge_is_the_dense_formula_and_unmerge_takes_it_back(variant, name):
    base, adapter = FUNCTIONS[name]().base, VARIANTS[variant](name)
    if variant == "dora":  # whose inverse needs updates smaller than the weight
        adapter = {path: dataclasses.replace(entry, b=0.1 * entry.b) for path, entry in adapter.items()}
    merged = jlora.merge(base, adapter)
    found, again, base = (leaves_by_path(tree) for tree in (merged, jlora.unmerge(merged, adapter), base))
    for path, weight in dense_weights(name, adapter).items():
        assert difference(found[path], weight.value) < 1e-6
        rounding = np.finfo(np.float32).eps * max(np.abs(weight.value).max(), np.abs(base[path]).max())
        roundings = {"lora": 2, "dora": 30}[variant]  # DoRA's factor is found again by a quadratic equation
        assert np.abs(np.asarray(again[path]) - np.asarray(base[path])).max() <= roundings * rounding
    assert all(np.array_equal(found[path], base[path]) for path in base.keys() - adapter.keys())


@all_functions
@all_variants
def test_split_and_combine_are_inverse(variant, name):
    adapter = VARIANTS[variant](name)
    trainable, frozen = jlora.split(adapter)
    assert all(leaf is None for entry in trainable.values() for leaf in (entry.scale, entry.squared_norm))
    again = jlora.combine(trainable, frozen)
    assert jax.tree.structure(again) == jax.tree.structure(adapter)
    assert all(x is y for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(adapter), strict=True))


def assert_same(found: Any, expected: Any) -> None:
    """The same tree, metadata included, with the same bits."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (x.dtype, np.asarray(x).tobytes()) == (y.dtype, np.asarray(y).tobytes())


@all_functions
@all_variants
def test_unstack_is_the_inverse_of_stack(variant, name):
    adapter = VARIANTS[variant](name)
    other = jax.tree.map(lambda x: x * 0.5, adapter)
    for found, expected in zip(jlora.unstack(jlora.stack([adapter, other])), (adapter, other), strict=True):
        assert_same(found, expected)


@all_functions
@all_variants
def test_reading_is_the_inverse_of_writing(variant, name):
    """As tensors of PEFT's file, which has no form for several matrices in one module (experts, heads, ensembles)."""
    adapter = VARIANTS[variant](name)
    inner = [path for path, entry in adapter.items() if entry.scale.ndim - 1 != is_stacked(path)]
    if inner:
        with pytest.raises(jlora.JloraError, match=r"found a stack .* for which\s*PEFT's files have no form"):
            to_peft(adapter)
        return
    blank = {path: dataclasses.replace(entry, a=0 * entry.a, b=0 * entry.b) for path, entry in adapter.items()}
    assert_same(from_peft(to_peft(adapter), blank, "adapter_model.safetensors"), adapter)


@all_functions
def test_nothing_is_materialized(name):
    case = FUNCTIONS[name]()
    assert jlora.find_materialized(case.fn, case.base, random_adapter(name), *case.args) == {}


SIZES = st.integers(1, 4)
DTYPES = {jnp.float32: 1e-5, jnp.bfloat16: 2e-2}


@st.composite
def products(draw: st.DrawFn) -> tuple[str, dict[str, int], bool]:
    """(einsum of x and w with axes in any order, {letter: size}, whether w is the first operand)."""
    counts = {"batch": draw(st.integers(0, 1)), "free": draw(st.integers(0, 2))}
    counts |= {"in": draw(st.integers(1, 2)), "out": draw(st.integers(1, 2))}
    letters = iter("abcdefg")
    groups = {name: [next(letters) for _ in range(count)] for name, count in counts.items()}
    x, w, out = (
        "".join(draw(st.permutations([letter for name in names for letter in groups[name]])))
        for names in (("batch", "free", "in"), ("batch", "in", "out"), ("batch", "free", "out"))
    )
    first = draw(st.booleans())
    sizes = {letter: draw(SIZES) for letter in dict.fromkeys(x + w)}
    return (f"{w},{x}->{out}" if first else f"{x},{w}->{out}"), sizes, first


def assert_laws(fn: Callable, base: Any, args: tuple, rank: int, dtype: Any) -> None:
    """Adapted is merged and the gradient is the dense one projected, at this rank, computed in this dtype."""
    config = jlora.LoraConfig(r=rank, lora_alpha=1.5 * rank, target_modules=".*")
    adapter = lora_cases.randomized(abstract_adapter(config, base, fn, *args))
    dense = Dense(base["w"], adapter["w"])

    def cast(x):
        return x.astype(dtype) if x.dtype == jnp.float32 else x

    def adapted(adapter, base):
        return jlora.adapt(fn)(jax.tree.map(cast, base), adapter, *map(cast, args))

    merged = {"w": jnp.asarray(np.asarray(dense.value, np.float32))}
    expected, expected_gradient = _program(fn, args, True)(merged)
    found, gradient = _program(lambda *a: adapted(*a).astype(jnp.float32), (), True)(adapter, base)
    assert jax.eval_shape(adapted, adapter, base).dtype == dtype
    tolerance = DTYPES[dtype]
    assert_near(found, expected, tolerance)
    for factor, expected_factor in dense.projected(expected_gradient["w"]).items():
        assert_near(getattr(gradient["w"], factor), expected_factor, 4 * tolerance)


def assert_near(found: Any, expected: Any, tolerance: float) -> None:
    """Relative to the size of what is expected, or to 1 where that is small: a sum of few terms can cancel."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= tolerance * max(np.sqrt(found.size), np.linalg.norm(expected))


@settings(max_examples=12)
@given(products(), st.integers(1, 3), st.sampled_from(list(DTYPES)))
def test_any_product_of_a_weight(product, rank, dtype):
    equation, sizes, first = product
    operands = equation.split("->")[0].split(",")
    x, w = operands[::-1] if first else operands
    rank = min(rank, *(int(np.prod([sizes[letter] for letter in set(w) - set(x)] or [1])),) * 2)
    rank = min(rank, int(np.prod([sizes[letter] for letter in set(w) - set(equation.split("->")[1])])))

    def fn(base, x):
        return jnp.einsum(equation, *((base["w"], x) if first else (x, base["w"])))

    shapes = [[sizes[letter] for letter in names] for names in (w, x)]
    assert_laws(fn, {"w": normal(1, *shapes[0])}, (normal(2, *shapes[1]),), rank, dtype)


@settings(max_examples=8)
@given(st.lists(SIZES, min_size=2, max_size=3), st.data(), st.integers(1, 3), st.sampled_from(list(DTYPES)))
def test_any_lookup_in_a_weight(shape, data, rank, dtype):
    axis = data.draw(st.integers(0, len(shape) - 1))
    indices = data.draw(st.lists(st.integers(-shape[axis], shape[axis] - 1), min_size=1, max_size=5))
    rank = min(rank, shape[axis], int(np.prod(shape)) // shape[axis])

    def fn(base, indices):
        return jnp.take(base["w"], indices, axis=axis)

    assert_laws(fn, {"w": normal(1, *shape)}, (jnp.asarray(np.array(indices, np.int32)),), rank, dtype)
