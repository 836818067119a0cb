"""Generates token ids from prompts with a causal language model and a cache of keys and values.

`generate` completes a batch in one compiled program, `stream` yields one completion token by token. Both compile once
for each shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jlora.algebra.merge import merge
from jlora.errors import JloraError
from jlora.lora.entries import Adapter
from jlora.models.kv_cache import Cache, with_room
from jlora.models.layers_apart import cache_set_apart, set_apart
from jlora.sharding.mesh import current_mesh
from jlora.transform.adapt import adapt
from jlora.tree.quantized import is_quantized

_SHORTEST = 64
"""The shortest length that `stream` compiles for; the next lengths double it."""


class Sampling(NamedTuple):
    """How a token is drawn: logits are divided by the temperature, then filtered by top_k and top_p."""

    temperature: float
    top_k: int
    top_p: float


def generate(
    model: Any,
    base: Any,
    adapter: Adapter | None,
    input_ids: Any,
    attention_mask: Any,
    *,
    max_new_tokens: int,
    pad_id: int,
    key: jax.Array | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop_ids: Sequence[int] = (),
) -> jax.Array:
    """Generates completions, int32 (B, max_new_tokens): tokens up to and including a stop id, then `pad_id`.

    The loop stops when all rows have ended. It is compiled once for each B, T, `max_new_tokens` and way of sampling.

    Args:
      model, base: as `load_base` gives them. adapter: {path: entry}, or None for the base alone.
      input_ids, attention_mask: int32 (B, T), shorter prompts padded on the left (attention_mask 0).
      pad_id: the id that fills a row after its end.
      key: JAX random key for sampling; None always takes the likeliest token (greedy).
      temperature: logits are divided by it. top_k, top_p: as for `filtered`.
      stop_ids: tokens that end a row.

    Raises:
      JloraError: an argument is out of its range, or there are more tokens than the model has positions for.
    """
    sampling = _sampling(temperature, top_k, top_p)
    _require_room(model, input_ids.shape[1], max_new_tokens)
    batch = _batch(input_ids, attention_mask)
    return _generate(model, base, _tree(adapter), batch, key, max_new_tokens, sampling, tuple(stop_ids), pad_id)


def stream(
    model: Any,
    base: Any,
    adapter: Adapter | None,
    ids: Sequence[int],
    *,
    max_new_tokens: int,
    key: jax.Array | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop_ids: Sequence[int] = (),
) -> Iterator[int]:
    """Yields the tokens of one completion as they are generated, without the stop id that ends it.

    Without a key they are the same tokens as from `generate`. The lengths of prompt and cache are each padded to a
    power of two (at least 64), and the step is compiled once for each such length.

    Args:
      ids: the prompt, at least one token. The other arguments are those of `generate`.

    Raises:
      JloraError: as for `generate`, or the prompt is empty; raised before the first token.
    """
    sampling = _sampling(temperature, top_k, top_p)
    _require_room(model, len(ids), max_new_tokens)
    if not len(ids):
        raise JloraError("prompt: expected one token at least; found none")
    width = min(_padded(len(ids)), context_length(model) or _padded(len(ids)))
    padding = [0] * (width - len(ids))
    batch = _batch([[*padding, *ids]], [[*padding, *[1] * len(ids)]])
    return _stream(model, base, _tree(adapter), batch, key, max_new_tokens, sampling, frozenset(stop_ids))


def context_length(model: Any) -> int | None:
    """Returns the most tokens that the model has positions for; None if it has no such limit (Bloom)."""
    return getattr(model.config, "max_position_embeddings", None)


def filtered(logits: jax.Array, *, top_k: int = 0, top_p: float = 1.0) -> jax.Array:
    """Sets the logits (..., vocab) of tokens that must not be drawn to minus infinity, as transformers' warpers do.

    Args:
      top_k: keep this many of the largest logits; 0 keeps all.
      top_p: of those, keep the likeliest tokens whose probabilities add up to this (nucleus), at least one token.
        Tokens with equal logits are kept or removed together.
    """
    if 0 < top_k < logits.shape[-1]:
        logits = _at_least(logits, logits, lax.top_k(logits, top_k)[0][..., -1:])
    if top_p < 1:
        probabilities = jax.nn.softmax(logits, axis=-1)
        logits = _at_least(logits, probabilities, _nucleus_threshold(probabilities, top_p))
    return logits


def _at_least(logits: jax.Array, values: jax.Array, threshold: jax.Array) -> jax.Array:
    return jnp.where(values >= threshold, logits, -jnp.inf)


def _nucleus_threshold(probabilities: jax.Array, top_p: float) -> jax.Array:
    """Finds the largest threshold (..., 1) such that the probabilities at or above it add up to at least `top_p`.

    Bisects the bit patterns of float32, which have the same order as the numbers. This is exact, and on a CPU ten times
    faster than sorting the vocabulary.
    """

    def halve(_: Any, interval: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = interval
        middle = low + (high - low) // 2
        floor = lax.bitcast_convert_type(middle, jnp.float32)
        enough = jnp.where(probabilities >= floor, probabilities, 0).sum(-1, keepdims=True) >= top_p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low = jnp.zeros_like(probabilities[..., :1], jnp.int32)
    above_one = lax.bitcast_convert_type(jnp.float32(1.5), jnp.int32)
    low, _ = lax.fori_loop(0, 30, halve, (low, jnp.full_like(low, above_one)))
    return lax.bitcast_convert_type(low, jnp.float32)


@partial(jax.jit, static_argnums=(0, 5, 6, 7, 8))
def _generate(
    model: Any,
    base: Any,
    adapter: Any,
    batch: dict[str, jax.Array],
    key: jax.Array | None,
    count: int,
    sampling: Sampling,
    stop_ids: tuple[int, ...],
    pad_id: int,
) -> jax.Array:
    rows, width = batch["input_ids"].shape
    one = jnp.ones((rows, 1), jnp.int32)

    def ended(token: jax.Array) -> jax.Array:
        return (token[:, None] == jnp.asarray(stop_ids, jnp.int32)[None]).any(1)

    def going(state: tuple) -> jax.Array:
        number, _, done, _, _ = state
        return (number < count) & ~done.all()

    def step(state: tuple) -> tuple:
        number, token, done, found, cache = state
        batch = {"input_ids": token[:, None], "attention_mask": one}
        token, cache = _next(model, base, adapter, batch, cache, _fold(key, number), sampling)
        token = jnp.where(done, pad_id, token)
        found = lax.dynamic_update_slice(found, token[:, None], (jnp.int32(0), number))
        return number + 1, token, done | ended(token), found, cache

    cache = _empty_cache(model, batch, count)
    token, cache = _next(model, base, adapter, batch, cache, _fold(key, 0), sampling)
    if count > 1:
        base, adapter, cache = _for_one_token(model, base, adapter, with_room(cache, width + count - 1))
    found = jnp.full((rows, count), pad_id, jnp.int32).at[:, 0].set(token)
    return lax.while_loop(going, step, (jnp.int32(1), token, ended(token), found, cache))[3]


def _stream(
    model: Any,
    base: Any,
    adapter: Any,
    batch: dict[str, jax.Array],
    key: jax.Array | None,
    count: int,
    sampling: Sampling,
    stop_ids: frozenset[int],
) -> Iterator[int]:
    width = batch["input_ids"].shape[1]
    cache = _empty_cache(model, batch, count)
    for number in range(count):
        if number == 1:
            base, adapter, cache = _ready(model, base, adapter, cache, _padded(width + count - 1))
        drawn, cache = _extended(model, base, adapter, batch, cache, _fold(key, number), sampling)
        token = int(drawn[0])
        if token in stop_ids:
            return
        yield token
        batch = {"input_ids": drawn[:, None], "attention_mask": jnp.ones((1, 1), jnp.int32)}


def _empty_cache(model: Any, batch: dict[str, jax.Array], count: int) -> Cache:
    """Makes a cache with room for only the prompts; its `reach` includes the `count` tokens that follow them."""
    cache = model.empty_cache(*batch["input_ids"].shape, model.dtype)
    return cache._replace(reach=batch["attention_mask"].sum(1, dtype=jnp.int32) + count)


def _next(
    model: Any,
    base: Any,
    adapter: Any,
    batch: dict[str, jax.Array],
    cache: Any,
    key: jax.Array | None,
    sampling: Sampling,
) -> tuple[jax.Array, Any]:
    """Returns (the next token of each row, int32 (B,); the cache extended by the batch)."""

    def last_logits(base: Any, batch: dict[str, jax.Array], cache: Any) -> tuple[jax.Array, Any]:
        hidden, cache = model.apply(base, batch, cache, method="extend")
        return model.apply(base, hidden[:, -1], method="logits"), cache

    logits, cache = adapt(last_logits)(base, adapter, batch, cache)
    return _drawn(logits, key, sampling), cache


def _for_one_token(model: Any, base: Any, adapter: Any, cache: Cache) -> tuple[Any, Any, Cache]:
    """Converts (base, adapter, cache) to the form that is fastest for one token at a time.

    On a CPU, the layers are unstacked and the adapter is merged. Nothing is converted if a mesh splits the weights, if
    weights are quantized, or if an update is for only one of a weight's uses.
    """
    leaves = jax.tree.leaves(base, is_leaf=is_quantized)
    is_whole = not any(map(is_quantized, leaves)) and all(
        getattr(entry, "only", None) is None for entry in (adapter or {}).values()
    )
    if jax.default_backend() != "cpu" or current_mesh() is not None or not is_whole:
        return base, adapter, cache
    return set_apart(merge(base, adapter or {}), model.dtype), None, cache_set_apart(cache)


@partial(jax.jit, static_argnums=(0, 4))
def _ready(model: Any, base: Any, adapter: Any, cache: Cache, size: int) -> tuple[Any, Any, Cache]:
    return _for_one_token(model, base, adapter, with_room(cache, size))


_extended = jax.jit(_next, static_argnums=(0, 6), donate_argnums=4)


def _drawn(logits: jax.Array, key: jax.Array | None, sampling: Sampling) -> jax.Array:
    """Draws a token for each row, int32 (B,), from logits (B, vocab)."""
    if key is None:
        return logits.argmax(-1).astype(jnp.int32)
    scaled = filtered(logits / sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)
    return jax.random.categorical(key, scaled).astype(jnp.int32)


def _fold(key: jax.Array | None, number: Any) -> jax.Array | None:
    return None if key is None else jax.random.fold_in(key, number)


def _batch(ids: Any, mask: Any) -> dict[str, jax.Array]:
    return {"input_ids": jnp.asarray(ids, jnp.int32), "attention_mask": jnp.asarray(mask, jnp.int32)}


def _tree(adapter: Adapter | None) -> dict | None:
    return dict(adapter) if adapter else None


def _padded(length: int) -> int:
    """Returns the smallest power of two, at least _SHORTEST, that `length` tokens fit into."""
    return max(_SHORTEST, 1 << (length - 1).bit_length())


def _sampling(temperature: float, top_k: int, top_p: float) -> Sampling:
    if not temperature > 0:
        raise JloraError(f"temperature: expected more than 0; found {temperature}; without a key the choice is greedy")
    if not 0 < top_p <= 1:
        raise JloraError(f"top_p: expected more than 0 and at most 1, which keeps all; found {top_p}")
    if top_k < 0:
        raise JloraError(f"top_k: expected 0, which keeps all, or more; found {top_k}")
    return Sampling(float(temperature), int(top_k), float(top_p))


def _require_room(model: Any, prompt: int, count: int) -> None:
    """Raises JloraError if `count` is below 1, or the model has no positions for prompt and completion."""
    limit = context_length(model)
    if count < 1:
        raise JloraError(f"max_new_tokens: expected 1 or more; found {count}")
    if limit is not None and prompt + count > limit:
        raise JloraError(
            f"prompt: expected at most {limit} tokens together with max_new_tokens = {count}, the model's context;"
            f" found {prompt}; shorten the prompt, or lower max_new_tokens"
        )
