"""The soft cap of attention scores (Gemma 2): cap * tanh(scores / cap), a number between -cap and cap."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def cap_scores(scores: jax.Array, softcap: float | None) -> jax.Array:
    """Caps scaled scores of any shape; None leaves them as they are."""
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def cap_scores_and_slope(scores: jax.Array, softcap: float | None) -> tuple[jax.Array, jax.Array | None]:
    """Returns (the capped scores, their derivative by the scores: 1 - tanh^2, or None without a cap)."""
    if softcap is None:
        return scores, None
    capped = jnp.tanh(scores / softcap)
    return capped * softcap, 1 - capped * capped
