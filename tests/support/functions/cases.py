"""What a function of tests/support/functions is, the table that they enter, and the numbers they are made of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Case(NamedTuple):
    """`fn(base, *args)`, all of whose weights can be adapted.

    Attributes:
      fn, base, args: the function, its weights and its other arguments.
      fields: what the LoraConfig says beside its targets.
      differentiable: whether JAX can differentiate it backwards.
    """

    fn: Callable
    base: Any
    args: tuple
    fields: dict[str, Any] = {}  # noqa: RUF012
    differentiable: bool = True


FUNCTIONS: dict[str, Callable[[], Case]] = {}
"""{name: what builds the case, once}."""

BIASES = ("bias", "bias_n", "b", "scale", "offset", "gamma", "beta")
"""Last names of leaves that no matrix product, lookup or convolution takes."""


def function(build: Callable[[], Case]) -> Callable[[], Case]:
    """Enters the function into FUNCTIONS."""
    FUNCTIONS[build.__name__] = functools.cache(build)
    return build


def is_weight(path: str) -> bool:
    """Whether the leaf at `path` is one that an adapter can be for."""
    return path.removesuffix("/value").rpartition("/")[2].rpartition(".")[2] not in BIASES


def normal(seed: int, *shape: int) -> jax.Array:
    """Standard normal numbers, float32."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def weight(seed: int, *shape: int) -> jax.Array:
    """Normal numbers of variance 1 / (size of the axis before the last)."""
    return jnp.asarray(np.asarray(normal(seed, *shape)) / np.float32(np.sqrt(shape[-2])))


X = normal(0, 3, 6)
TOKENS = normal(0, 2, 5, 8)
IDS = jnp.array([[1, 4, 0, 7, 3], [2, 2, 8, 6, 5]])
PIXELS = normal(0, 2, 6, 6, 4)
SIGNAL = normal(0, 2, 9, 4)


def randomly(tree: Any) -> Any:
    """The tree with random floats of the same shapes; layer norms' scales are near 1."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    values = []
    for seed, (keys, leaf) in enumerate(leaves):
        spread = 0.8 / np.sqrt(max(1, leaf.size // leaf.shape[-1] if leaf.ndim > 1 else 20))
        path = jax.tree_util.keystr(keys, simple=True, separator="/").removesuffix("/value")
        shift = 1 if path.rpartition("/")[2] in ("scale", "gamma") else 0
        values.append(jnp.asarray(shift + np.float32(max(spread, 0.2)) * np.asarray(normal(seed, *leaf.shape))))
    return jax.tree.unflatten(structure, values)


def relaxed(fn: Callable) -> Callable:
    """The function where ranks and dtypes may be mixed, as these frameworks do."""

    def run(*args: Any) -> Any:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return fn(*args)

    return run
