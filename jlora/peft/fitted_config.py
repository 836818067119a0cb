"""Fits a LoraConfig to an adapter's current ranks and scales (after reducing, adding, scaling or unstacking)."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np

from jlora.errors import JloraError
from jlora.lora.config import LoraConfig
from jlora.lora.entries import Adapter, Entry, LowRank
from jlora.lora.matrices import Matrices, from_matrices, layer_ranks, to_matrices
from jlora.lora.targets import is_target, matches, pattern_value
from jlora.peft.tensor_keys import peft_layer_names

Value = TypeVar("Value", int, float)


def fitted_config(config: LoraConfig, adapter: Adapter) -> LoraConfig:
    """Returns a configuration with which PEFT reproduces this adapter's ranks and scales.

    After `reduce_rank`, `add_weighted_adapter`, `scale` or `unstack`, an adapter no longer matches its configuration.
    The result has the most common rank and lora_alpha as `r` and `lora_alpha`, the modules that differ by their whole
    names in rank_pattern and alpha_pattern ({"^" + re.escape(name): value}), and use_rslora off. If target_modules
    matches other modules than those that are adapted, it becomes the list of their names.

    Args:
      config: the configuration that the adapter was made with.
      adapter: {path: entry} of arrays.

    Returns:
      The fitted configuration; `config` itself if it already describes the adapter.

    Raises:
      JloraError: the components of a layer differ in scale (`jlora.fold_scale` moves the scales into B), or there is a
        stack inside a module, which PEFT's files cannot hold.
    """
    layers = _layers(adapter)
    adapted = {name: layer for name, layer in layers.items() if layer.rank}
    if not adapted or (
        # `init` with this configuration would give each layer its rank and scale.
        _means(config, layers)
        and all(_layer_of(config, name) == (layer.rank, layer.scale) for name, layer in adapted.items())
    ):
        return config
    ranks = {name: layer.rank for name, layer in adapted.items()}
    alphas = {name: _alpha(layer) for name, layer in adapted.items()}
    rank, alpha = _most_common(ranks), _most_common(alphas)
    fitted = dataclasses.replace(
        config,
        r=rank,
        lora_alpha=alpha,
        rank_pattern=_patterns(ranks, rank),
        alpha_pattern=_patterns(alphas, alpha),
        use_rslora=False,
    )
    if _means(config, layers):
        return fitted
    everywhere: dict[str, Any] = {"exclude_modules": None, "layers_to_transform": None, "layers_pattern": None}
    return dataclasses.replace(fitted, target_modules=list(adapted), **everywhere)


def fold_scale(adapter: Adapter) -> dict[str, Entry]:
    """Multiplies each B by its scale and sets the scale to 1 (lora_alpha equal to r): the same function, bit for bit.

    Needed for servers that support only one lora_alpha / r for all modules. `Full` and `Rows` entries are not changed.
    """
    folded = dict(adapter)
    for path, entry in adapter.items():
        if isinstance(entry, LowRank):
            layers = [Matrices(a, b * s[None, :].astype(b.dtype), jnp.ones_like(s)) for a, b, s in to_matrices(entry)]
            folded[path] = from_matrices(entry, layers)
    return folded


class _Layer(NamedTuple):
    """The rank and scale of one module; rank 0 means that it is not adapted."""

    rank: int
    scale: np.float32


def _layers(adapter: Adapter) -> dict[str, _Layer]:
    """Returns {name of the module: its rank and scale} of all layers of all low-rank entries."""
    layers: dict[str, _Layer] = {}
    for path, entry in adapter.items():
        if isinstance(entry, LowRank):
            scales = np.asarray(entry.scale, np.float32).reshape(-1, entry.scale.shape[-1])
            parts = zip(peft_layer_names(path, entry), layer_ranks(entry), scales, strict=True)
            layers |= {name: _layer(name, scale[:rank]) for name, rank, scale in parts}
    return layers


def _layer(name: str, scale: np.ndarray) -> _Layer:
    if not scale.size:
        return _Layer(0, np.float32(0))
    if (scale != scale[0]).any():
        raise JloraError(
            f"{name}: expected one scale for all {scale.size} components, which lora_alpha / r can say,"
            f" found {scale.min()} to {scale.max()}; jlora.fold_scale puts the scales into B"
        )
    return _Layer(scale.size, scale[0])


def _layer_of(config: LoraConfig, name: str) -> _Layer:
    rank = pattern_value(config.rank_pattern, name, config.r)
    alpha = pattern_value(config.alpha_pattern, name, config.lora_alpha)
    return _Layer(rank, np.float32(alpha / (math.sqrt(rank) if config.use_rslora else rank)))


def _means(config: LoraConfig, layers: Mapping[str, _Layer]) -> bool:
    """Returns whether the configuration adapts exactly the layers with a rank, and lists no other name."""
    if any(is_target(config, name) != bool(layer.rank) for name, layer in layers.items()):
        return False
    if config.target_modules is None or isinstance(config.target_modules, str):
        return True
    adapted = [name for name, layer in layers.items() if layer.rank]
    return all(any(matches([entry], name) for name in adapted) for entry in config.target_modules)


def _alpha(layer: _Layer) -> float:
    """Returns the lora_alpha with the fewest digits that gives exactly this scale."""
    exact = float(layer.scale) * layer.rank
    for digits in range(10):
        if np.float32(round(exact, digits) / layer.rank) == layer.scale:
            return round(exact, digits) if digits else round(exact)
    return exact


def _most_common(values: Mapping[str, Value]) -> Value:
    return Counter(values.values()).most_common(1)[0][0]


def _patterns(values: Mapping[str, Value], default: Value) -> dict[str, Value]:
    """Returns {regular expression for the whole name: value} of the values that differ from the default."""
    return {f"^{re.escape(name)}": value for name, value in values.items() if value != default}
