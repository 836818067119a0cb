"""Cross-entropy of the next token, computed without the logits of all tokens in memory at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jlora.sharding.mesh import current_mesh
from train.devices.placement import row_parts

LOGITS_AT_A_TIME = 256
"""How many tokens' logits a device computes at once: enough for a fast product; 50 MB for a vocabulary of 49,152."""


class Sums(NamedTuple):
    """Sums over learnt tokens, float32 (): of their losses, and the number that is predicted correctly."""

    loss: jax.Array
    correct: jax.Array


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def next_token_sums(
    logits: Callable[[Any, Any, jax.Array, jax.Array], jax.Array],
    trainable: Any,
    frozen: Any,
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> Sums:
    """Sums weights * cross-entropy and weights * (argmax == target) over all tokens.

    The logits of a chunk of tokens are computed only once, also when the loss is differentiated: the gradient of the
    chunk is computed together with its loss, and kept instead of the logits. Gradients are for `trainable` and
    `hidden`.

    Args:
      logits: logits(trainable, frozen, hidden, chunk) -> float32 (B, C, vocab) of a chunk (B, C, D); `chunk` is its
        number, int32 (), counted from 0. All chunks have one size; the last is filled up with tokens of weight 0.
      trainable, frozen: any trees that the logits depend on in addition to the hidden states.
      hidden: (B, T, D), floating point.
      targets: int32 (B, T).
      weights: float32 (B, T); 0 for tokens that are not learnt.
    """

    def chunk(sums: Sums, rows: tuple) -> tuple[Sums, None]:
        return _add(sums, _chunk_sums(logits, trainable, frozen, *rows)), None

    return jax.lax.scan(chunk, _zero(), _chunks(hidden, targets, weights))[0]


def _forward(logits: Callable, trainable: Any, frozen: Any, hidden: Any, targets: Any, weights: Any) -> tuple:
    def chunk_loss(trainable: Any, hidden: jax.Array, *others: jax.Array) -> tuple[jax.Array, Sums]:
        sums = _chunk_sums(logits, trainable, frozen, hidden, *others)
        return sums.loss, sums

    def chunk(carry: tuple, rows: tuple) -> tuple[tuple, jax.Array]:
        sums, slopes = carry
        (_, more), (slope, hidden_slope) = jax.value_and_grad(chunk_loss, (0, 1), has_aux=True)(trainable, *rows)
        return (_add(sums, more), jax.tree.map(jnp.add, slopes, slope)), hidden_slope

    start = (_zero(), jax.tree.map(jnp.zeros_like, trainable))
    (sums, slopes), hidden_slopes = jax.lax.scan(chunk, start, _chunks(hidden, targets, weights))
    rows, tokens, width = hidden.shape
    # (chunks, B, C, D) to (B, T, D)
    hidden_slopes = jnp.moveaxis(hidden_slopes, 0, 1).reshape(rows, -1, width)[:, :tokens]
    return sums, (slopes, hidden_slopes)


def _backward(logits: Callable, kept: tuple, slope: Sums) -> tuple:
    trainable, hidden = (jax.tree.map(lambda x: x * slope.loss.astype(x.dtype), tree) for tree in kept)
    return trainable, None, hidden, None, None


next_token_sums.defvjp(_forward, _backward)


def _chunk_sums(
    logits: Callable, trainable: Any, frozen: Any, hidden: Any, targets: Any, weights: Any, number: Any
) -> Sums:
    found = logits(trainable, frozen, hidden, number)
    losses = optax.softmax_cross_entropy_with_integer_labels(found, targets)
    right = (jnp.argmax(found, -1) == targets).astype(weights.dtype)
    return Sums(jnp.sum(losses * weights), jnp.sum(right * weights))


def _chunks(hidden: jax.Array, *others: jax.Array) -> tuple[jax.Array, ...]:
    """Splits (B, T, ...) into (chunks, B, C, ...), the last one padded with zeros; also returns chunk numbers."""
    rows, length = others[0].shape
    count = -(-length // max(1, LOGITS_AT_A_TIME * row_parts(current_mesh()) // rows))
    width = -(-length // count)
    filled = (jnp.pad(x, [(0, 0), (0, count * width - length)] + [(0, 0)] * (x.ndim - 2)) for x in (hidden, *others))
    cut = (jnp.moveaxis(x.reshape(rows, count, width, *x.shape[2:]), 1, 0) for x in filled)
    return *cut, jnp.arange(count, dtype=jnp.int32)


def _zero() -> Sums:
    return Sums(jnp.float32(0), jnp.float32(0))


def _add(sums: Sums, more: Sums) -> Sums:
    return Sums(sums.loss + more.loss, sums.correct + more.correct)
