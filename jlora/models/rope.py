"""Rotary positions (Su et al. 2021) with the scalings that `rope_parameters` of Hugging Face configs name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jlora.errors import JloraError
from jlora.paths import nearest


def rotary_frequencies(config: Any, width: int) -> np.ndarray:
    """Radians a position of each pair of features: (width / 2,) float32, scaled as the config says.

    Raises:
      JloraError: a `rope_type` that is not in the table.
    """
    parameters = config.rope_parameters
    kind = parameters.get("rope_type", "default")
    if kind not in _SCALINGS:
        raise JloraError(
            f"config.json: rope_parameters.rope_type: expected one of {', '.join(_SCALINGS)}; found {kind!r}"
            f"{nearest(str(kind), _SCALINGS)}"
        )
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    plain = 1.0 / np.float32(parameters["rope_theta"]) ** exponents
    return _SCALINGS[kind](plain, parameters).astype(np.float32)


def _default(frequencies: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
    return frequencies


def _linear(frequencies: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
    return frequencies / parameters["factor"]


def _llama3(frequencies: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
    """Slow pairs are stretched by `factor`, fast ones kept, those between blended (Llama 3.1)."""
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    turns = parameters["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - share) * frequencies / parameters["factor"] + share * frequencies


_SCALINGS: dict[str, Callable[[np.ndarray, Mapping[str, Any]], np.ndarray]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
}


def rotation(positions: jax.Array, frequencies: np.ndarray, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """cos and sin of positions (B, T) times frequencies (W,), each (B, T, 1, W), in `dtype`."""
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies[None, None, None, :]
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """x (B, T, H, D) with feature i and i + W turned by the angle i of (B, T, 1, W); features from 2 W on stay."""
    width = cos.shape[-1]
    first, second, rest = x[..., :width], x[..., width : 2 * width], x[..., 2 * width :]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned + ([rest] if rest.shape[-1] else []), axis=-1)
