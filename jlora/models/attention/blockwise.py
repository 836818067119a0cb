"""Attention with memory linear in the number of tokens: it computes one block of scores at a time.

Forward: a running maximum and sum for each query (Milakov and Gimelshein, 2018; FlashAttention, Dao et al., 2022).
Backward: each block of scores is computed again. Pairs of blocks in which no query sees a key are skipped. A block of
scores has the axes (keys, queries): sums over keys then run over rows, which XLA vectorizes on a CPU, and no product
needs a transpose.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jlora.models.attention.softcap import cap_scores_and_slope
from jlora.models.attention.visibility import Visibility, can_see, sees
from jlora.models.mesh_ops import KEPT
from jlora.ops.dropout import is_kept

_HIDDEN, _LOWEST = -1e30, -1e29
"""The score of a hidden key, and the initial maximum: exp of their difference is 0."""
_SCORES_AT_A_TIME = 2**21
BLOCKS = "attention_blocks"
"""The name scope of the blocks' products in a compiled program."""
_FEWEST, _MOST = (64, 128), (256, 256)
"""(queries, keys): `_grid` chooses the greatest size of a block between these two."""


class Options(NamedTuple):
    """Options that change scores and probabilities.

    Attributes:
      scale: the factor of the scores.
      softcap: scaled scores become softcap * tanh(score / softcap); None does not cap them.
      dropout_rate: the probability that an attention probability is dropped.
    """

    scale: float
    softcap: float | None = None
    dropout_rate: float = 0.0


class _Grid(NamedTuple):
    """How the scores of a call are cut into blocks of `queries` by `keys` tokens.

    Attributes:
      batch, heads, length: sizes of the query.
      key_heads, slots: sizes of the key.
      queries, keys: tokens of a block.
    """

    batch: int
    heads: int
    length: int
    key_heads: int
    slots: int
    queries: int
    keys: int

    @property
    def group(self) -> int:
        """How many query heads share a key head; in a block their queries are adjacent."""
        return self.heads // self.key_heads

    @property
    def rows(self) -> int:
        """The number of rows R of a block: its queries times the heads of a group."""
        return self.queries * self.group


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def blockwise_attention(
    options: Options,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    key_bias: jax.Array | None,
    visibility: Visibility,
    dropout_words: jax.Array | None,
) -> jax.Array:
    """Computes softmax(capped scores + key_bias) value over the visible keys; 0 for queries that see no key.

    Args:
      query: (B, T, H, D), floating point.
      key, value: (B, S, K, D); H / K query heads share each of the K heads.
      key_bias: float32 (B, H, S), added to all scores of a key; None adds nothing.
      visibility: which keys each query sees; its `kernel` is not read.
      dropout_words: uint32 (2,), `hash_words` of a dropout key; None drops nothing.

    Returns:
      (B, T, H, D) in the dtype of `query`.
    """
    return _forward(options, query, key, value, key_bias, visibility, dropout_words)[0]


class _Sums(NamedTuple):
    """For each query, over the keys so far: the largest score and the sum (B, K, R), the mixed values (B, K, D, R)."""

    largest: jax.Array
    total: jax.Array
    mixed: jax.Array


def _forward(options: Options, *inputs: Any) -> tuple[jax.Array, tuple]:
    query, key, value, key_bias, visibility, words = inputs
    grid = _grid(query, key)
    q, k, v = _rows_of(query, grid), _slots_of(key, grid), jnp.swapaxes(_slots_of(value, grid), -1, -2)
    bias = _bias_of(key_bias, grid)

    def step(sums: _Sums, i: jax.Array, j: jax.Array) -> _Sums:
        scores, _ = _scores(options, grid, visibility, q, k, bias, i, j)
        largest = jnp.maximum(sums.largest, scores.max(-2))
        p, shrink = jnp.exp(scores - largest[..., None, :]), jnp.exp(sums.largest - largest)
        total = sums.total * shrink + p.sum(-2)
        p = (
            p
            if words is None
            else jnp.where(_dropout_mask(options, grid, words, i, j), p / (1 - options.dropout_rate), 0)
        )
        values = _block(v, j, grid.keys, -1)
        return _Sums(largest, total, sums.mixed * shrink[..., None, :] + _dot(values, p.astype(v.dtype), 1, 0))

    shape = q.shape[:-1]
    sums = _Sums(jnp.full(shape, _LOWEST), jnp.zeros(shape), jnp.zeros((*shape[:-1], q.shape[-1], shape[-1])))
    for_queries = (grid.rows, -1)

    def put(sums: _Sums, i: jax.Array, j: jax.Array, is_seen: jax.Array | None) -> _Sums:
        before = _Sums(*(_block(x, i, *for_queries) for x in sums))
        after = _where(is_seen, lambda: step(before, i, j), before)
        return _Sums(*(_with_block(x, new, i, *for_queries) for x, new in zip(sums, after, strict=True)))

    sums = _over_pairs(grid, visibility, q, put, jax.tree.map(jnp.float32, sums))
    total = jnp.maximum(sums.total, jnp.finfo(jnp.float32).tiny)
    result = _from_rows(jnp.swapaxes(sums.mixed / total[..., None, :], -1, -2), grid).astype(query.dtype)
    log_sums = _from_rows((sums.largest + jnp.log(total))[..., None], grid)[..., 0].swapaxes(1, 2)
    result, log_sums = checkpoint_name(result, KEPT), checkpoint_name(log_sums, KEPT)
    return result, (*inputs, result, log_sums)


class _Slopes(NamedTuple):
    """The gradients of queries (B, K, D, R), of keys and values (B, K, S, D), and of any bias (B, K, S, group)."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    bias: jax.Array | None


def _backward(options: Options, kept: tuple, slope: jax.Array) -> tuple:
    query, key, value, key_bias, visibility, words, result, log_sums = kept
    grid = _grid(query, key)
    delta = (slope.astype(jnp.float32) * result.astype(jnp.float32)).sum(-1)
    log_sums, delta = (_rows_of(x[..., None], grid)[..., 0] for x in (log_sums.swapaxes(1, 2), delta))
    # Rows that only pad the last block get probabilities of zero, whatever the bias adds to their scores.
    log_sums = jnp.where(np.arange(log_sums.shape[-1]) < grid.length * grid.group, log_sums, -_HIDDEN)
    q, k, v, slope = _rows_of(query, grid), _slots_of(key, grid), _slots_of(value, grid), _rows_of(slope, grid)
    bias, turned = _bias_of(key_bias, grid), jnp.swapaxes(k, -1, -2)

    def step(i: jax.Array, j: jax.Array) -> _Slopes:
        scores, factor = _scores(options, grid, visibility, q, k, bias, i, j)
        queries, slopes = _block(q, i, grid.rows, -2), _block(slope, i, grid.rows, -2)
        p = jnp.exp(scores - _block(log_sums, i, grid.rows, -1)[..., None, :])
        dp, dropped = _dot(_block(v, j, grid.keys, -2), slopes, 1, 1), p
        if words is not None:
            scaled = jnp.where(
                _dropout_mask(options, grid, words, i, j), jnp.float32(1 / (1 - options.dropout_rate)), 0
            )
            dp, dropped = dp * scaled, p * scaled
        ds = p * (dp - _block(delta, i, grid.rows, -1)[..., None, :])
        dbias = None if bias is None else ds.reshape(*ds.shape[:-1], -1, grid.group).sum(-2)
        ds = (ds * options.scale if factor is None else ds * (factor * options.scale)).astype(q.dtype)
        dv = _dot(dropped.astype(q.dtype), slopes, 1, 0)
        return _Slopes(_dot(_block(turned, j, grid.keys, -1), ds, 1, 0), _dot(ds, queries, 1, 0), dv, dbias)

    places = ((grid.rows, -1), (grid.keys, -2), (grid.keys, -2), None if bias is None else (grid.keys, -2))

    def add(slopes: _Slopes, i: jax.Array, j: jax.Array, is_seen: jax.Array | None) -> _Slopes:
        shapes = jax.eval_shape(step, i, j)
        new = _where(is_seen, lambda: step(i, j), jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))

        def add_block(x: jax.Array | None, more: Any, place: Any, at: jax.Array) -> Any:
            return x if x is None else _with_block(x, _block(x, at, *place) + more, at, *place)

        return _Slopes(*(add_block(*parts) for parts in zip(slopes, new, places, (i, j, j, j), strict=True)))

    zeros = _Slopes(jnp.swapaxes(q, -1, -2), k, v, bias)
    found = _over_pairs(grid, visibility, q, add, jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), zeros))
    dq = _from_rows(jnp.swapaxes(found.query, -1, -2), grid).astype(query.dtype)
    dk, dv = (_from_slots(x, grid).astype(key.dtype) for x in (found.key, found.value))
    return dq, dk, dv, None if found.bias is None else _from_bias(found.bias, grid), None, None


blockwise_attention.defvjp(_forward, _backward)


def _grid(query: jax.Array, key: jax.Array) -> _Grid:
    (batch, length, heads, _), (_, slots, key_heads, _) = query.shape, key.shape
    keys = _evenly(slots, min(_MOST[1], max(_FEWEST[1], _SCORES_AT_A_TIME // (batch * heads * _FEWEST[0]))))
    queries = _evenly(length, min(_MOST[0], max(_FEWEST[0], _SCORES_AT_A_TIME // (batch * heads * keys))))
    return _Grid(batch, heads, length, key_heads, slots, queries, keys)


def _evenly(count: int, most: int) -> int:
    """Returns the size that cuts `count` tokens into equal blocks: at most `most`, rounded up to a multiple of 8."""
    blocks = -(-count // most)
    return count if blocks == 1 else -(-count // (8 * blocks)) * 8


def _over_pairs(grid: _Grid, visibility: Visibility, q: jax.Array, step: Callable[..., Any], state: Any) -> Any:
    """Folds `step(state, i, j, is_seen)` over the pairs of blocks i of queries and j of keys; returns the last state.

    Pairs that positions hide are skipped. `is_seen` is False for pairs that segment numbers or `start` hide, and None
    if that was not computed.
    """
    counts = -(-grid.length // grid.queries), -(-grid.slots // grid.keys)
    pairs = [
        (i, j)
        for i, j in np.ndindex(*counts)
        if can_see(visibility, i * grid.queries, grid.queries, j * grid.keys, grid.keys)
    ]
    if len(pairs) == 1:
        return step(state, *map(jnp.int32, pairs[0]), None)
    # XLA would hoist everything that depends only on the block numbers, such as which tokens see which, out of a loop
    # over layers, and keep it in memory for all pairs. The barrier makes the numbers depend on the queries.
    _, i, j = lax.optimization_barrier((q[0, 0, 0, 0], *jnp.array(pairs, jnp.int32).T))
    turns = (i, j, _are_seen(visibility, grid, i, j))
    return lax.scan(lambda state, turn: (step(state, *turn), None), state, turns)[0]


def _are_seen(visibility: Visibility, grid: _Grid, i: jax.Array, j: jax.Array) -> jax.Array | None:
    """Returns bool (pairs,): whether any query of block i sees any key of block j in any row.

    Returns None if `visibility` has neither segments nor a start. It is computed before the loop and for all rows at
    once: devices that share the rows of a batch then communicate once, not once for each pair.
    """
    if visibility.query_segments is None and visibility.start is None:
        return None

    def rows_that_see(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        queries, keys = (
            number * size + np.arange(size) for number, size in zip(pair, (grid.queries, grid.keys), strict=True)
        )
        seen = sees(visibility, queries, keys)
        assert seen is not None
        return seen.any((-2, -1))

    return lax.map(rows_that_see, (i, j)).any(1)


def _where(is_seen: jax.Array | None, fn: Callable[[], Any], otherwise: Any) -> Any:
    return fn() if is_seen is None else lax.cond(is_seen, fn, lambda: otherwise)


def _scores(
    options: Options,
    grid: _Grid,
    visibility: Visibility,
    q: jax.Array,
    k: jax.Array,
    bias: jax.Array | None,
    i: jax.Array,
    j: jax.Array,
) -> tuple[jax.Array, jax.Array | None]:
    """Computes scores, float32 (B, K, keys, rows), of query block i and key block j.

    Returns:
      (scores, the derivative of the softcap or None).
    """
    scores = _dot(_block(k, j, grid.keys, -2), _block(q, i, grid.rows, -2), 1, 1) * jnp.float32(options.scale)
    scores, factor = cap_scores_and_slope(scores, options.softcap)
    if bias is not None:
        scores = scores + jnp.tile(_block(bias, j, grid.keys, -2), grid.queries)
    keys = j * grid.keys + np.arange(grid.keys)
    seen = sees(visibility, i * grid.queries + np.arange(grid.rows) // grid.group, keys)
    if grid.slots % grid.keys:
        inside = (keys < grid.slots)[None, :, None]
        seen = inside if seen is None else seen & inside
    return scores if seen is None else jnp.where(seen[:, None], scores, _HIDDEN), factor


def _dropout_mask(options: Options, grid: _Grid, words: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
    """Returns bool (B, K, keys, rows): the probabilities that `dropout` of all (B, H, T, S) keeps too."""
    row = np.arange(grid.rows)
    heads = np.arange(grid.key_heads)[:, None] * grid.group + row % grid.group
    places = (np.arange(grid.batch)[:, None, None] * grid.heads + heads) * grid.length + row // grid.group
    rows = jnp.asarray(places, jnp.uint32) + (i * grid.queries).astype(jnp.uint32)
    slots = jnp.asarray(np.arange(grid.keys), jnp.uint32) + (j * grid.keys).astype(jnp.uint32)
    return is_kept(words, rows[:, :, None] * jnp.uint32(grid.slots) + slots[None, None, :, None], options.dropout_rate)


def _dot(left: jax.Array, right: jax.Array, left_axis: int, right_axis: int) -> jax.Array:
    """Multiplies matrices (B, K, ., .) in float32, summing over left_axis and right_axis (0 or 1) of the matrices."""
    contract = (((2 + left_axis,), (2 + right_axis,)), ((0, 1), (0, 1)))
    with jax.named_scope(BLOCKS):
        return lax.dot_general(left, right, contract, preferred_element_type=jnp.float32)


def _block(x: jax.Array, number: jax.Array, size: int, axis: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, number * size, size, axis)


def _with_block(x: jax.Array, block: jax.Array, number: jax.Array, size: int, axis: int) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(x, block, number * size, axis)


def _rows_of(x: jax.Array, grid: _Grid) -> jax.Array:
    """Reshapes (B, T, H, D) to (B, K, R, D): the queries of a group are adjacent; zeros pad the last block."""
    rows = x.reshape(grid.batch, grid.length, grid.key_heads, grid.group, -1).transpose(0, 2, 1, 3, 4)
    return _pad_length(rows, grid.queries).reshape(grid.batch, grid.key_heads, -1, x.shape[-1])


def _from_rows(x: jax.Array, grid: _Grid) -> jax.Array:
    rows = x.reshape(grid.batch, grid.key_heads, -1, grid.group, x.shape[-1])[:, :, : grid.length]
    return rows.transpose(0, 2, 1, 3, 4).reshape(grid.batch, grid.length, grid.heads, -1)


def _slots_of(x: jax.Array, grid: _Grid) -> jax.Array:
    """Transposes (B, S, K, D) to (B, K, S, D); zeros pad the last block."""
    return _pad_length(x.transpose(0, 2, 1, 3), grid.keys)


def _from_slots(x: jax.Array, grid: _Grid) -> jax.Array:
    return x[:, :, : grid.slots].transpose(0, 2, 1, 3)


def _bias_of(bias: jax.Array | None, grid: _Grid) -> jax.Array | None:
    """Reshapes float32 (B, H, S) to (B, K, S, group); zeros pad the last block."""
    if bias is None:
        return None
    return _pad_length(bias.reshape(grid.batch, grid.key_heads, grid.group, -1).swapaxes(2, 3), grid.keys)


def _from_bias(x: jax.Array, grid: _Grid) -> jax.Array:
    return x[:, :, : grid.slots].swapaxes(2, 3).reshape(grid.batch, grid.heads, grid.slots)


def _pad_length(x: jax.Array, size: int) -> jax.Array:
    """Pads x (B, K, length, ...) with zeros, so that length becomes a multiple of `size`."""
    missing = -x.shape[2] % size
    return x if not missing else jnp.pad(x, [(0, missing) if axis == 2 else (0, 0) for axis in range(x.ndim)])
