"""Attention with all the options that models need; chooses the kernel that computes it.

auto       the fastest kernel that can compute the call, on the platform that the program is lowered for
cudnn      cuDNN's fused kernel (NVIDIA GPUs)
splash     JAX's splash attention (TPUs)
blockwise  by blocks, in plain JAX: on every platform, for every model
full       all scores at once: the reference for testing the others
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jlora.errors import JloraError
from jlora.models.attention.blockwise import Options, blockwise_attention
from jlora.models.attention.cudnn import cudnn_attention, cudnn_obstacle
from jlora.models.attention.one_token import one_token_attention
from jlora.models.attention.softcap import cap_scores
from jlora.models.attention.splash import splash_attention, splash_obstacle
from jlora.models.attention.visibility import KERNELS, Visibility, sees
from jlora.ops.dropout import dropout, hash_words


class Kernel(NamedTuple):
    """A kernel of one platform.

    Attributes:
      platform: where it runs, as JAX calls it.
      obstacle: obstacle(options, query, key, visibility, biased=, dropped=) returns why the kernel cannot compute a
        call; None if it can.
      compute: compute(options, query, key, value, visibility) computes the attention, (B, T, H, D).
    """

    platform: str
    obstacle: Callable[..., str | None]
    compute: Callable[..., jax.Array]


FUSED = {
    "cudnn": Kernel("cuda", cudnn_obstacle, cudnn_attention),
    "splash": Kernel("tpu", splash_obstacle, splash_attention),
}

_OBSTACLES: ContextVar[dict[str, str | None] | None] = ContextVar("_OBSTACLES", default=None)


@contextmanager
def record_obstacles() -> Iterator[dict[str, str | None]]:
    """Yields {kernel of FUSED: why it cannot compute one of the calls traced in the block; None if it can}.

    The dict is filled while the block runs, and is empty if no attention is traced in it.
    """
    found: dict[str, str | None] = {}
    token = _OBSTACLES.set(found)
    try:
        yield found
    finally:
        _OBSTACLES.reset(token)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    visibility: Visibility,
    *,
    scale: float | jax.Array | None = None,
    softcap: float | None = None,
    key_bias: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
    dropout_rate: float = 0.0,
) -> jax.Array:
    """Computes softmax(scale query key^T + key_bias) value over the visible keys; 0 for queries that see no key.

    Scores and softmax are float32. With a dropout key, probabilities are dropped by `jlora.ops.dropout`'s hash of their
    positions, so every kernel that supports dropout drops the same ones.

    Args:
      query: (B, T, H, D), floating point.
      key, value: (B, S, K, D); H / K query heads share each of the K heads: head h uses h // (H / K).
      visibility: which keys each query sees, and which kernel computes the attention.
      scale: factor of the scores; None is 1 / sqrt(D). An array is multiplied into the queries.
      softcap: scaled scores become softcap * tanh(scores / softcap), as in Gemma 2; None does not cap them.
      key_bias: float32 (B, H, S), added to the scores of each key (ALiBi) after the cap; None adds nothing.
      dropout_key: one JAX random key; None drops nothing.
      dropout_rate: probability that an attention probability is dropped.

    Returns:
      (B, T, H, D) in the dtype of `query`.

    Raises:
      JloraError: `visibility.kernel` names no kernel, or one that cannot compute this call.
    """
    if visibility.kernel not in KERNELS:
        raise JloraError(f"visibility: expected a kernel out of {', '.join(KERNELS)}; found {visibility.kernel!r}")
    if isinstance(scale, jax.Array):
        query, scale = (query.astype(jnp.float32) * scale).astype(query.dtype), 1.0
    words = None if dropout_key is None or dropout_rate == 0.0 else hash_words(dropout_key)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    options = Options(float(scale), softcap, 0.0 if words is None else dropout_rate)
    if visibility.kernel == "full":
        return full_attention(options, query, key, value, key_bias, visibility, dropout_key)
    if visibility.kernel != "blockwise" and query.shape[1] == 1 and words is None:
        return one_token_attention(options, query, key, value, key_bias, visibility)
    obstacles = {
        name: kernel.obstacle(options, query, key, visibility, biased=key_bias is not None, dropped=words is not None)
        for name, kernel in FUSED.items()
    }
    if (record := _OBSTACLES.get()) is not None:
        record.update({name: record.get(name) or reason for name, reason in obstacles.items()})

    def by_blocks(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return blockwise_attention(options, query, key, value, key_bias, visibility, words)

    def bind_kernel(name: str) -> Callable[..., jax.Array]:
        return lambda query, key, value: FUSED[name].compute(options, query, key, value, visibility)

    return _choose_kernel(visibility.kernel, obstacles, bind_kernel, by_blocks)(query, key, value)


def _choose_kernel(kernel: str, obstacles: dict[str, str | None], fused: Callable, by_blocks: Callable) -> Callable:
    if kernel == "blockwise":
        return by_blocks
    if kernel in FUSED:
        if reason := obstacles[kernel]:
            raise JloraError(
                f"train.attention: expected a kernel that computes this model's attention, found {kernel}: {reason}."
                " auto takes the fastest that does."
            )
        return fused(kernel)
    can = {FUSED[name].platform: fused(name) for name, reason in obstacles.items() if reason is None}
    if not can:
        return by_blocks
    return lambda *arrays: lax.platform_dependent(*arrays, default=by_blocks, **can)


def full_attention(
    options: Options,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    key_bias: jax.Array | None,
    visibility: Visibility,
    dropout_key: jax.Array | None,
) -> jax.Array:
    """Computes attention by the plain formula with all scores, float32 (B, H, T, S): the reference for tests.

    Args:
      options: scale, softcap and dropout_rate are read.
      query, key, value: (B, T, H, D), (B, S, K, D), (B, S, K, D); query head h uses key head h // (H / K).
      key_bias: float32 (B or 1, H, S), added to the scores of each key; None is zero.
      visibility: which keys a query sees; the result is 0 for one that sees none.
      dropout_key: drops probabilities; None drops none.

    Returns:
      (B, T, H, D) in the query's dtype.
    """
    (batch, length, heads, width), (slots, key_heads) = query.shape, key.shape[1:3]
    grouped = query.reshape(batch, length, key_heads, -1, width)
    scores = jnp.einsum("btkgd,bskd->bkgts", grouped, key, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, heads, length, slots) * jnp.float32(options.scale)
    scores = cap_scores(scores, options.softcap)
    scores = scores if key_bias is None else scores + key_bias[:, :, None, :]
    seen = sees(visibility, jnp.arange(length), jnp.arange(slots))
    seen = jnp.ones((1, 1, 1, 1), bool) if seen is None else seen.swapaxes(1, 2)[:, None]
    scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
    probabilities = jnp.where(seen, jax.nn.softmax(scores, axis=-1), 0).astype(value.dtype)
    if dropout_key is not None:
        probabilities = dropout(dropout_key, probabilities, options.dropout_rate)
    grouped = probabilities.reshape(batch, key_heads, -1, length, slots)
    mixed = jnp.einsum("bkgts,bskd->btkgd", grouped, value, preferred_element_type=jnp.float32)
    return mixed.reshape(batch, length, heads, width).astype(query.dtype)
