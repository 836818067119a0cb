"""`Generator`: a language model that completes prompts, with a cache of keys and values.

The compiled steps are shared by all generators of a model: a server may hold one for each adapter.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jlora.algebra.merge import merge
from jlora.errors import ContextLengthError, JloraError
from jlora.generation.sampling import PLAIN, Sampling, checked_sampling, draw_tokens
from jlora.lora.entries import Adapter
from jlora.models.kv_cache import Cache, with_room
from jlora.models.unstack_layers import unstack_cache, unstack_layers
from jlora.sharding.mesh import current_mesh
from jlora.transform.adapt import adapt
from jlora.tree.quantized import is_quantized

_SHORTEST = 64
"""The shortest length that `Generator.stream` compiles for; each further length is twice the one before."""


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
    """A causal language model that completes prompts.

    Attributes:
      model, base: as `load_base` gives them.
      adapter: {path: entry}, or None for the base alone.
    """

    model: Any
    base: Any
    adapter: Adapter | None = None

    def generate(
        self,
        input_ids: Any,
        attention_mask: Any,
        *,
        max_new_tokens: int,
        pad_id: int,
        key: jax.Array | None = None,
        sampling: Sampling = PLAIN,
        stop_ids: Sequence[int] = (),
    ) -> jax.Array:
        """Completes a batch of prompts, as `jlora.generate` does."""
        sampling = checked_sampling(*sampling)
        require_room(self.model, input_ids.shape[1], max_new_tokens)
        batch, adapter = _batch(input_ids, attention_mask), _tree(self.adapter)
        stops = tuple(stop_ids)
        return _generate(self.model, self.base, adapter, batch, key, max_new_tokens, sampling, stops, pad_id)

    def stream(
        self,
        ids: Sequence[int],
        *,
        max_new_tokens: int,
        key: jax.Array | None = None,
        sampling: Sampling = PLAIN,
        stop_ids: Sequence[int] = (),
    ) -> Iterator[int]:
        """Yields the tokens of one completion, as `jlora.stream` does; what is wrong is raised before the first."""
        sampling = checked_sampling(*sampling)
        require_room(self.model, len(ids), max_new_tokens)
        if not len(ids):
            raise JloraError("prompt: expected one token at least; found none")
        width = min(_padded(len(ids)), context_length(self.model) or _padded(len(ids)))
        padding = [0] * (width - len(ids))
        batch = _batch([[*padding, *ids]], [[*padding, *[1] * len(ids)]])
        adapter, stops = _tree(self.adapter), frozenset(stop_ids)
        return _stream(self.model, self.base, adapter, batch, key, max_new_tokens, sampling, stops)


def context_length(model: Any) -> int | None:
    """Returns the most tokens that the model has positions for, `model.config.max_position_embeddings`.

    None if its config has no such key (Bloom).
    """
    return getattr(model.config, "max_position_embeddings", None)


def require_room(model: Any, prompt: int, count: int) -> None:
    """Raises an error if the model has no positions for prompt and completion, or there is nothing to complete.

    Args:
      model: its `context_length` is the limit.
      prompt, count: the numbers of tokens of the prompt and the completion.

    Raises:
      ContextLengthError: prompt + count is above the limit.
      JloraError: count is below 1.
    """
    limit = context_length(model)
    if count < 1:
        raise JloraError(f"max_new_tokens: expected 1 or more; found {count}")
    if limit is not None and prompt + count > limit:
        raise ContextLengthError(
            f"prompt: expected at most {limit} tokens together with max_new_tokens = {count}, the model's context;"
            f" found {prompt}; shorten the prompt, or lower max_new_tokens"
        )


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
    return draw_tokens(logits, key, sampling), cache


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
    return unstack_layers(merge(base, adapter or {}), model.dtype), None, unstack_cache(cache)


@partial(jax.jit, static_argnums=(0, 4))
def _ready(model: Any, base: Any, adapter: Any, cache: Cache, size: int) -> tuple[Any, Any, Cache]:
    return _for_one_token(model, base, adapter, with_room(cache, size))


_extended = jax.jit(_next, static_argnums=(0, 6), donate_argnums=4)


def _fold(key: jax.Array | None, number: Any) -> jax.Array | None:
    return None if key is None else jax.random.fold_in(key, number)


def _batch(ids: Any, mask: Any) -> dict[str, jax.Array]:
    return {"input_ids": jnp.asarray(ids, jnp.int32), "attention_mask": jnp.asarray(mask, jnp.int32)}


def _tree(adapter: Adapter | None) -> dict | None:
    return dict(adapter) if adapter else None


def _padded(length: int) -> int:
    """Returns the smallest power of two, at least _SHORTEST, that `length` tokens fit into."""
    return max(_SHORTEST, 1 << (length - 1).bit_length())
