"""Adapters with random A and B, and the law that holds for all of them: adapted equals merged."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jlora
from jlora.initialization.abstract_adapter import abstract_adapter
from jlora.models.registry import abstract_base, build
from jlora.tree.leaf_paths import leaves_by_path, replace_leaves
from tests.support.models.encoder_cases import difference, random_batch, tiny_config


def normal(seed: int, *shape: int) -> jax.Array:
    """Standard normal numbers, float32."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def low_rank(spec: str, shape: tuple[int, ...], **fields: Any) -> jlora.LowRank:
    """A random entry of rank 2 and scale 1.5 for a leaf of `shape`, with the letters of `spec`."""
    (a_letters, b_letters), out = spec.split("->")[0].split(","), spec.split("->")[1]
    sizes = {"r": 2, **dict(zip(out, shape, strict=True))}
    a, b = (normal(seed, *(sizes[letter] for letter in names)) for seed, names in ((1, a_letters), (2, b_letters)))
    stack = a_letters[: a_letters.index("r")]
    ranks = (2,) * (sizes[stack[0]] if stack else 1)
    scale = jnp.full([sizes[letter] for letter in (*stack, "r")], 1.5)
    return jlora.LowRank(a, 0.3 * b, scale, spec, ranks, **fields)


def random_adapter(fn: Callable, base: Any, *args: Any, targets: Any, **fields: Any) -> dict[str, Any]:
    """An adapter of the shapes that `init` gives with r 2 and alpha 3, everything random but the scale."""
    config = jlora.LoraConfig(target_modules=targets, **{"r": 2, "lora_alpha": 3, **fields})
    return randomized(abstract_adapter(config, base, fn, *args))


def random_encoder(family: str, *, remat: bool = False, **sizes: Any) -> tuple[Any, Any, dict[str, jax.Array]]:
    """(model, random base, batch) of a tiny encoder; nothing is compiled for it."""
    model = build(tiny_config(family, **sizes), remat=remat)
    leaves = leaves_by_path(abstract_base(model))
    values = {path: 0.2 * normal(seed, *leaf.shape) for seed, (path, leaf) in enumerate(leaves.items())}
    ones = {path: 1 + value for path, value in values.items() if path.endswith("/scale")}
    return model, replace_leaves(abstract_base(model), values | ones), random_batch(model.config)


def randomized(adapter: Any) -> dict[str, Any]:
    """The adapter with random A, B and values, B (and values) small, and magnitudes and squared norms about 1."""
    numbers: dict[str, Any] = {}
    for seed, (path, entry) in enumerate(sorted(adapter.items())):
        if not isinstance(entry, jlora.LowRank):
            numbers[path] = dataclasses.replace(entry, value=0.3 * normal(10 + seed, *entry.value.shape))
            continue
        a, b = normal(100 + seed, *entry.a.shape), 0.3 * normal(200 + seed, *entry.b.shape)
        numbers[path] = dataclasses.replace(entry, a=a, b=b)
        if entry.magnitude is not None:
            numbers[path] = _as_dora(numbers[path], 300 + seed)
    return numbers


def _as_dora(entry: jlora.LowRank, seed: int) -> jlora.LowRank:
    """A magnitude as of a leaf of standard normal numbers; tests that know the base fill in its squared norm."""
    shape = entry.magnitude.shape
    inputs = entry.a.size // entry.scale.size
    magnitude = (1 + 0.2 * normal(seed, *shape)) * inputs**0.5
    return dataclasses.replace(entry, magnitude=magnitude, squared_norm=jnp.full(shape, float(inputs)))


def assert_adapted_is_merged(
    fn: Callable,
    base: Any,
    adapter: Any,
    *args: Any,
    tolerance: float = 1e-5,
    gradients: bool = True,
    jit: Callable = jax.jit,
) -> None:
    """The adapted function is `fn` of the merged tree; so are the gradients of A, B and what is trained whole.

    The gradients of the merged function are the dense formula's: dL/dW projected on A and on B. The scale has none.
    """

    def adapted(adapter: Any) -> Any:
        return jlora.adapt(fn)(base, adapter, *args)

    def merged(adapter: Any) -> Any:
        return fn(jlora.merge(base, adapter), *args)

    def values(adapter: Any) -> list[tuple[jax.Array, Any]]:
        return [_value_and_gradient(function, adapter, gradients) for function in (adapted, merged)]

    (found, found_gradient), (expected, expected_gradient) = jit(values)(adapter)
    assert found.dtype == expected.dtype
    assert difference(found, expected) < tolerance
    assert difference(fn(base, *args), expected) > 30 * tolerance, "the adapter changes nothing: nothing is tested"
    for path, entry in found_gradient.items():
        names = ("a", "b") if isinstance(entry, jlora.LowRank) else ("value",)
        names += ("magnitude",) if getattr(entry, "magnitude", None) is not None else ()
        for name in names:
            expected_leaf = getattr(expected_gradient[path], name)
            assert difference(getattr(entry, name), expected_leaf) < 10 * tolerance, (path, name)
        if isinstance(entry, jlora.LowRank):
            assert not entry.scale.any()


def _value_and_gradient(function: Callable, adapter: Any, gradients: bool) -> tuple[jax.Array, Any]:
    """The function's value, and the gradient of a random weighting of it (nothing where not `gradients`)."""
    if not gradients:
        return function(adapter), {}

    def loss(adapter: Any) -> tuple[jax.Array, jax.Array]:
        value = function(adapter)
        return jnp.sum(value.astype(jnp.float32) * normal(7, *value.shape)), value

    gradient, value = jax.grad(loss, has_aux=True)(adapter)
    return value, gradient
