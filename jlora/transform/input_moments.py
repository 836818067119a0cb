"""Computes second moments of the inputs of a function's weights, from which EVA initializes A."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jlora.lora.entries import Adapter, LowRank
from jlora.transform.adapted_weight import probed, wrap_quantized
from jlora.transform.context import Context
from jlora.transform.interpreter import results_of, trace


def second_moments(fn: Callable, base: Any, adapter: Adapter, *args: Any, **kwargs: Any) -> dict[str, jax.Array]:
    """Sums x x^T over all tokens, for the inputs x that the adapted weights are multiplied by.

    Args:
      fn: a function of (base, *args, **kwargs) that is differentiable; at least one of its results is of floating
        point.
      base: the tree of weights, some of them perhaps `Quantized`.
      args, kwargs: the data; every row of an input x counts, padding too.
      adapter: {path: entry} as `jlora.init` makes it. Its LowRank entries of the kind "linear" say which weights; only
        their specs and shapes are read.

    Returns:
      {path: (*stack, in, in), float32}, summed over all uses of a weight. With several input axes, `in` is their
      product in the order of the leaf's axes. For `x @ base["w"]`: {"w": x.T @ x}.

    Raises:
      JloraError: a weight is used in a batched product, or only in part.
      NoRuleError: a weight is used where no rule takes it.
    """
    products = {path: e for path, e in adapter.items() if isinstance(e, LowRank) and e.kind == "linear"}
    taps = {path: _moments_of_nothing(entry) for path, entry in products.items()}
    traced = trace(fn, base, args, kwargs)

    def outputs(taps: dict[str, jax.Array]) -> jax.Array:
        values = [
            wrap_quantized(path, leaf)
            if path is None or path not in taps
            else probed(path, leaf, products[path], taps[path])
            for path, leaf in zip(traced.paths, traced.leaves, strict=True)
        ]
        results = [x for x in results_of(Context(None), traced, values) if jnp.issubdtype(x.dtype, jnp.floating)]
        return jnp.sum(jnp.stack([jnp.sum(result.astype(jnp.float32)) for result in results]))

    return jax.grad(outputs)(taps)


def _moments_of_nothing(entry: LowRank) -> jax.Array:
    """Returns zeros (*stack, in, in)."""
    stack = len(entry.scale.shape) - 1
    width = math.prod(entry.a.shape[stack + 1 :])
    return jnp.zeros((*entry.a.shape[:stack], width, width), jnp.float32)
