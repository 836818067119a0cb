"""Unstacks layers: each layer's weights become separate arrays instead of slices that a scan takes from a stack.

On a CPU, XLA copies a layer's weights out of the stack before it multiplies by them. Compared with the products of a
whole batch the copy is cheap, but it takes as long as the products of a single token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import linen as nn

from jlora.models.kv_cache import Cache, Slots
from jlora.tree.module_names import is_stack


def unstack_layers(base: Any, dtype: Any) -> Any:
    """Converts each stack of layers to {"0": the first layer's weights, "1": ...}, for `extend` with a cache.

    Stacks are the modules that `is_stack` names (`layers`, `h`, ...); the rest of the tree keeps its structure.

    Args:
      base: {"params": ...} of a causal language model, without quantized leaves.
      dtype: of the model. Kernels and embeddings are cast to it once, instead of in every product.
    """
    return {"params": _unstack_layers(base["params"], dtype)}


def _unstack_layers(tree: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, part in tree.items():
        if not isinstance(part, Mapping):
            found[name] = part.astype(dtype) if name in ("kernel", "weight", "embedding") else part
        elif is_stack(name):
            found[name] = _layers(_unstack_layers(part, dtype))
        else:
            found[name] = _unstack_layers(part, dtype)
    return found


def _layers(stack: Any) -> dict[str, Any]:
    count = len(jax.tree.leaves(stack)[0])
    return {str(number): jax.tree.map(lambda leaf, number=number: leaf[number], stack) for number in range(count)}


def unstack_cache(cache: Cache) -> Cache:
    """Converts keys and values to tuples of one array per layer, for `extend` with unstacked weights."""
    return cache._replace(keys=tuple(cache.keys), values=tuple(cache.values))


def unstacked_weights(stack: nn.Module) -> list[Any]:
    """Returns a list of each layer's weights if `unstack_layers` has separated them; an empty list if not.

    `stack` is a bound module: the weights are {"0": ..., "1": ...} in its `variables["params"]`.
    """
    weights = stack.variables.get("params", {})
    return [weights[str(number)] for number in range(len(weights))] if "0" in weights else []


def run_unstacked(layers: Sequence[tuple[nn.Module, Any]], x: Any, shared: Any, slots: Slots) -> tuple[Any, Slots]:
    """Runs unstacked layers in turn; returns (x, the slots that they wrote, as tuples of one array per layer).

    Args:
      layers: (unbound module, its weights) for each layer. A module called with (x, shared, slots) returns (x, slots).
      x, shared: the first layer's input, and a value that all layers get.
      slots: of all layers, arrays (layers, ...) or tuples of one array per layer.
    """
    written = []
    for (layer, weights), *own in zip(layers, *slots, strict=True):
        x, found = layer.apply({"params": weights}, x, shared, Slots(*own))
        written.append(found)
    return x, Slots(*zip(*written, strict=True))
