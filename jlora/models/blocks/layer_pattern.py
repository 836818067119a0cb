"""Runs layers whose types alternate: a scan over the periods of the pattern, then the remaining layers one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jlora.errors import UnsupportedModelError
from jlora.files.limits import LONGEST_LAYER_PATTERN
from jlora.models.mesh_ops import remat_layer
from jlora.models.unstack_layers import run_unstacked, unstacked_weights


def shortest_period(types: Sequence[str]) -> int:
    """Returns the smallest p such that types[i] == types[i - p]: 1 if all are the same, 6 for Gemma 3.

    `types` has at least one entry. It is the number of types if they do not repeat.
    """
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
    """Applies all layers and returns (x, slots); call it in a compact method of the module that owns the layers.

    The size of the compiled program grows with the period of `types`, not with the number of layers. If `name` is
    "layers" and the period is 6, the parameters of layers 1, 7, 13, ... are stacked under `layers_1_of_6`; if the
    period is 1, under `layers`. Layers after the last complete period are not stacked: `layers_24`.

    Args:
      layer: a linen class: `layer(*fields, type)(x, shared, slots)` returns (x, slots).
      fields: the first fields of every layer.
      types: the type of each layer.
      name: of the parameters of the layers.
      x, shared: the first layer's input, and an argument of all layers.
      slots: the layers' parts of a cache, each (layers, ...); or None, and then None is returned.
      remat: compute a layer's values again in the backward pass instead of keeping them.

    Raises:
      UnsupportedModelError: the period has more than 128 layers, which would all be compiled.
    """
    period = shortest_period(types)
    if period > LONGEST_LAYER_PATTERN:
        raise UnsupportedModelError(
            f"layer_types: expected a pattern that repeats after {LONGEST_LAYER_PATTERN} layers; found {period}"
        )
    scanned = len(types) - len(types) % period
    inside = remat_layer(layer, remat=remat, prevent_cse=False)
    outside = remat_layer(layer, remat=remat, prevent_cse=True)
    names = [f"{name}_{i}_of_{period}" for i in range(period)] if period > 1 else [name]
    stacks = tuple(inside(*fields, kind, name=stack) for stack, kind in zip(names, types, strict=False))
    rest = tuple(outside(*fields, types[i], name=f"{name}_{i}") for i in range(scanned, len(types)))

    if unstacked_weights(stacks[0]):
        first = [weights for group in zip(*map(unstacked_weights, stacks), strict=True) for weights in group]
        last = [layer.variables["params"] for layer in rest]
        singles = [layer(*fields, kind, parent=None) for kind in types]
        return run_unstacked(list(zip(singles, [*first, *last], strict=True)), x, shared, slots)
    groups = jax.tree.map(lambda leaf: leaf[:scanned].reshape(-1, period, *leaf.shape[1:]), slots)
    x, groups = _scan(scanned // period)(stacks)(x, shared, groups)
    written = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), groups)
    if not rest:
        return x, written
    x, last = _in_turn(rest, x, shared, jax.tree.map(lambda leaf: leaf[scanned:], slots))
    return x, jax.tree.map(lambda *parts: jnp.concatenate(parts), written, last)


class Period(nn.Module):
    """Applies layers one after another, as a step of a scan: (x, shared, slots (period, ...) or None) -> (x, slots)."""

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
