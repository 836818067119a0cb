"""Layers whose kinds alternate: a scan over the pattern's period, and what is left over one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jlora.errors import JloraError
from jlora.models.layers_apart import run_apart, weights_apart
from jlora.models.mesh_ops import remat_layer

_MOST_PERIOD = 128


def shortest_period(types: Sequence[str]) -> int:
    """The smallest p for which each type is that of p places before: 1 where all are the same, 6 for Gemma 3."""
    count = len(types)
    return next(p for p in range(1, count + 1) if all(types[i] == types[i - p] for i in range(p, count)))


def apply_layers(
    layer: type[nn.Module],
    fields: tuple,
    types: Sequence[str],
    name: str,
    x: jax.Array,
    shared: Any,
    slots: Any,
    *,
    remat: bool,
) -> tuple[jax.Array, Any]:
    """(x after all layers, their slots); to be called in a compact method of the module that owns the layers.

    What is compiled grows with the period of `types`, not with their number. The parameters of layers 1, 7, 13, ...
    are stacked under `layers_1_of_6` where the period is 6 and `name` is "layers", and under `layers` where it
    is 1; the layers after the last whole period are single ones, `layers_24`.

    Args:
      layer: `layer(*fields, type)(x, shared, slots)` gives (x, slots).
      types: of each layer.
      shared: what all layers are called with.
      slots: their parts of a cache, (layers, ...) each; or None, and then None is returned.
      remat: compute a layer's values again in the backward pass instead of keeping them.

    Raises:
      JloraError: a period of more than 128 layers, each of which would be compiled.
    """
    period = shortest_period(types)
    if period > _MOST_PERIOD:
        raise JloraError(f"layer_types: expected a pattern that repeats after {_MOST_PERIOD} layers; found {period}")
    scanned = len(types) - len(types) % period
    inside = remat_layer(layer, remat=remat, prevent_cse=False)
    outside = remat_layer(layer, remat=remat, prevent_cse=True)
    names = [f"{name}_{i}_of_{period}" for i in range(period)] if period > 1 else [name]
    stacks = tuple(inside(*fields, kind, name=stack) for stack, kind in zip(names, types, strict=False))
    rest = tuple(outside(*fields, types[i], name=f"{name}_{i}") for i in range(scanned, len(types)))

    if weights_apart(stacks[0]):
        first = [weights for group in zip(*map(weights_apart, stacks), strict=True) for weights in group]
        last = [layer.variables["params"] for layer in rest]
        singles = [layer(*fields, kind, parent=None) for kind in types]
        return run_apart(list(zip(singles, [*first, *last], strict=True)), x, shared, slots)
    groups = jax.tree.map(lambda leaf: leaf[:scanned].reshape(-1, period, *leaf.shape[1:]), slots)
    x, groups = _scan(scanned // period)(stacks)(x, shared, groups)
    written = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), groups)
    if not rest:
        return x, written
    x, last = _in_turn(rest, x, shared, jax.tree.map(lambda leaf: leaf[scanned:], slots))
    return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), written, last)


class Period(nn.Module):
    """Layers in turn, as a step of a scan: (x, shared, slots (period, ...) or None) -> (x, slots)."""

    layers: tuple[nn.Module, ...]

    def __call__(self, x: jax.Array, shared: Any, slots: Any) -> tuple[jax.Array, Any]:
        return _in_turn(self.layers, x, shared, slots)


def _scan(groups: int) -> Any:
    return nn.scan(
        Period,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast, 0),
        length=groups,
    )


def _in_turn(layers: Sequence[nn.Module], x: jax.Array, shared: Any, slots: Any) -> tuple[jax.Array, Any]:
    written = []
    for number, layer in enumerate(layers):
        x, own = layer(x, shared, jax.tree.map(lambda leaf, number=number: leaf[number], slots))
        written.append(own)
    return x, jax.tree.map(lambda *own: jnp.stack(own), *written)
