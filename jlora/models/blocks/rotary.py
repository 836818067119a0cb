"""Rotary positions (Su et al. 2021) with the scalings that `rope_parameters` of Hugging Face configs name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jlora.errors import UnsupportedModelError, nearest

Length = int | jax.Array
"""The length of the rows: one number for all, or int32 (B,)."""


def rotary_frequencies(config: Any, width: int, length: Length = 1, layer_type: str | None = None) -> Any:
    """Computes the radians per position of each pair of features, scaled as the config says.

    Args:
      config: with `rope_parameters` and `max_position_embeddings`. The first has `rope_theta`, `rope_type` (default,
        linear, dynamic, longrope, llama3 or yarn) and that type's numbers, as in transformers.
      width: how many features of a head are rotated.
      length: of the rows; only "dynamic" and "longrope" depend on it.
      layer_type: selects the part of `rope_parameters` if each type of layer has its own.

    Returns:
      float32 (width / 2,), for "default" theta^(-2 i / width); with "dynamic" and "longrope" (1, width / 2) for one
      length or (B, width / 2) for (B,).

    Raises:
      UnsupportedModelError: another `rope_type`.
    """
    parameters = _parameters(config, layer_type)
    plain = plain_frequencies(parameters["rope_theta"], width)
    return _FREQUENCIES[parameters["rope_type"]](plain, parameters, length).astype(np.float32)


def plain_frequencies(theta: float, width: int) -> np.ndarray:
    """Computes unscaled radians per position of each feature pair: float32 (width / 2,), from 1 to about 1 / theta."""
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    return 1.0 / np.float32(theta) ** exponents


def rotary_scale(config: Any, layer_type: str | None = None) -> float:
    """Returns the factor of cosines and sines: 1, except for the rope types "yarn" and "longrope".

    For these it is `attention_factor` of `rope_parameters`, or computed if that is missing.

    Args:
      config: with `rope_parameters` and `max_position_embeddings`.
      layer_type: selects the part of `rope_parameters` if each type of layer has its own.

    Raises:
      UnsupportedModelError: the `rope_type` is not known.
    """
    parameters = _parameters(config, layer_type)
    scale = _SCALES.get(parameters["rope_type"])
    return 1.0 if scale is None else parameters.get("attention_factor") or scale(parameters)


def longest_row(config: Any) -> int:
    """Returns the number of positions: `max_position_embeddings`, or more if a scaling extends them.

    For the rope types "linear" and "dynamic" that is `max_position_embeddings` times `factor` of
    `config.rope_parameters`, for "yarn" `original_max_position_embeddings` times `factor`, rounded down.
    """
    longest, parameters = config.max_position_embeddings, config.rope_parameters
    trained = {"linear": longest, "dynamic": longest, "yarn": parameters.get("original_max_position_embeddings")}
    stretched = trained.get(parameters.get("rope_type"))
    return max(longest, int(stretched * parameters["factor"])) if stretched else longest


def require_rope_type(parameters: Any, where: str = "config.json") -> None:
    """Raises UnsupportedModelError if a `rope_type` is not known.

    Args:
      parameters: `rope_parameters` of a config, or {type of a layer: such parameters}, or None.
      where: the file of the config, for the message.
    """
    if not isinstance(parameters, Mapping):
        return
    for found in (parameters, *parameters.values()):
        kind = found.get("rope_type", "default") if isinstance(found, Mapping) else "default"
        if kind not in _FREQUENCIES:
            raise UnsupportedModelError(
                f"{where}: rope_parameters.rope_type: expected one of {', '.join(_FREQUENCIES)}; found {kind!r}"
                f"{nearest(str(kind), _FREQUENCIES)}"
            )


def _parameters(config: Any, layer_type: str | None) -> dict[str, Any]:
    """Returns the rotary parameters of one type of layer, without null values, and with a `factor`."""
    parameters = config.rope_parameters
    parameters = parameters.get(layer_type, parameters)
    kind, longest = parameters.get("rope_type", "default"), config.max_position_embeddings
    require_rope_type(parameters)
    factor = longest / (parameters.get("original_max_position_embeddings") or longest)
    given = {key: value for key, value in parameters.items() if value is not None}
    return {"rope_type": kind, "factor": factor, "max_position_embeddings": longest, **given}


def _default(plain: np.ndarray, parameters: Mapping[str, Any], length: Length) -> np.ndarray:
    return plain


def _linear(plain: np.ndarray, parameters: Mapping[str, Any], length: Length) -> np.ndarray:
    return plain / parameters["factor"]


def _dynamic(plain: np.ndarray, parameters: Mapping[str, Any], length: Length) -> jax.Array:
    """Increases the base for rows longer than the trained ones ("NTK-aware")."""
    factor, width = parameters["factor"], 2 * len(plain)
    beyond = jnp.maximum(_column(length).astype(jnp.float32) / parameters["max_position_embeddings"], 1.0)
    growth = (factor * beyond - (factor - 1)) ** (width / (width - 2))
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    return plain[None] / growth ** exponents[None]


def _longrope(plain: np.ndarray, parameters: Mapping[str, Any], length: Length) -> jax.Array:
    """Divides each frequency by its own factor, a different one in rows longer than the trained ones (Phi-3)."""
    short, long = (plain / np.asarray(parameters[f"{name}_factor"], np.float32) for name in ("short", "long"))
    return jnp.where(_column(length) > parameters["original_max_position_embeddings"], long[None], short[None])


def _column(length: Length) -> jax.Array:
    """Reshapes a length to (1, 1) or (B, 1)."""
    return jnp.reshape(jnp.asarray(length), (-1, 1))


def _llama3(plain: np.ndarray, parameters: Mapping[str, Any], length: Length) -> np.ndarray:
    """Divides slow frequencies by `factor`, keeps fast ones, and blends those in between (Llama 3.1)."""
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    turns = parameters["original_max_position_embeddings"] * plain / (2 * math.pi)
    share = np.clip((turns - low) / (high - low), 0, 1)
    return (1 - share) * plain / parameters["factor"] + share * plain


def _yarn(plain: np.ndarray, parameters: Mapping[str, Any], length: Length) -> np.ndarray:
    """Scales as "llama3" does, but the blend is linear in the pair's number (YaRN)."""
    width, theta = 2 * len(plain), parameters["rope_theta"]

    def pair(turns: float) -> float:
        """Returns the number of the pair that makes `turns` turns over the trained length."""
        trained = parameters["original_max_position_embeddings"]
        return width * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(parameters.get("beta_fast") or 32), pair(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    slow = np.clip((np.arange(len(plain), dtype=np.float32) - low) / max(high - low, 0.001), 0, 1)
    return slow * plain / parameters["factor"] + (1 - slow) * plain


def _yarn_scale(parameters: Mapping[str, Any]) -> float:
    def scale(share: float) -> float:
        return 0.1 * share * math.log(max(parameters["factor"], 1)) + 1.0

    above, below = parameters.get("mscale"), parameters.get("mscale_all_dim")
    return scale(above) / scale(below) if above and below else scale(1)


def _longrope_scale(parameters: Mapping[str, Any]) -> float:
    trained = parameters["original_max_position_embeddings"]
    return math.sqrt(1 + math.log(max(parameters["factor"], 1)) / math.log(trained))


_FREQUENCIES: dict[str, Callable[[np.ndarray, Mapping[str, Any], Length], Any]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "longrope": _longrope,
    "llama3": _llama3,
    "yarn": _yarn,
}
_SCALES: dict[str, Callable[[Mapping[str, Any]], float]] = {"longrope": _longrope_scale, "yarn": _yarn_scale}


def rotation(positions: jax.Array, frequencies: Any, dtype: Any, scale: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """Computes cos and sin of positions (B, T) times frequencies (W,) or (B, W), times `scale`.

    Returns:
      (cos, sin), each (B, T, 1, W) in `dtype`.
    """
    angles = positions.astype(jnp.float32)[:, :, None, None] * frequencies.reshape(-1, 1, 1, frequencies.shape[-1])
    return (jnp.cos(angles) * scale).astype(dtype), (jnp.sin(angles) * scale).astype(dtype)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates features i and i + W of x (B, T, H, D) by angle i of (B, T, 1, W); features from 2 W on do not change.

    The pair (p, q) becomes (p cos - q sin, q cos + p sin).
    """
    width = cos.shape[-1]
    first, second, rest = x[..., :width], x[..., width : 2 * width], x[..., 2 * width :]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned + ([rest] if rest.shape[-1] else []), axis=-1)


def rotate_pairs(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates features 2 i and 2 i + 1 of x (B, T, H, D) by angle i of (B, T, 1, W), as in GPT-J.

    The pair (p, q) becomes (p cos - q sin, q cos + p sin); features from 2 W on do not change.
    """
    turned, rest = jnp.split(x, [2 * cos.shape[-1]], axis=-1)
    first, second = turned[..., ::2], turned[..., 1::2]
    pairs = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([pairs.reshape(turned.shape), rest], axis=-1)
