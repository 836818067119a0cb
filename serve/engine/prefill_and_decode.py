"""The compiled programs of a language model's engine: read a piece of a prompt, make a token for each row, move rows.

Keys and values of a row are a `Cache` of one row; how far it is filled is the host's to know. So a row that is thrown
away needs no cleaning unless it holds NaN, and padding at the end of a piece is overwritten by what follows.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jlora.bank.bank import Bank
from jlora.bank.selection import Selection, divide_adapters
from jlora.models.kv_cache import Cache
from jlora.models.mesh_ops import by_key_heads
from jlora.models.registry import example_batch
from jlora.transform.adapt import adapt
from serve.engine.sampling import Choice, Drawn, draw_rows


class KeyValues(NamedTuple):
    """Keys and values of some rows.

    Attributes:
      keys: (rows, layers, 1, key heads, width, places). values: (rows, layers, 1, key heads, places, width). Or, if the
        base's layers are unstacked, tuples with an array for each layer, without the axis of the layers.
    """

    keys: Any
    values: Any

    @property
    def rows(self) -> int:
        """The number of rows."""
        return jax.tree.leaves(self.keys)[0].shape[0]

    @property
    def places(self) -> int:
        """How many tokens a row has room for."""
        return jax.tree.leaves(self.keys)[0].shape[-1]


class NewTokens(NamedTuple):
    """The tokens that are appended to what each row already holds.

    Attributes:
      ids: int32 (rows, T). real: int32 (rows,), how many of the T are real; the rest is padding at the end.
      start: int32 (rows,), how many tokens the row holds.
      reach: int32 (rows,), how many tokens it will finally have.
      slot: int32 (rows,), the adapter that reads them: a slot of the bank, or a place of the selection; -1 is the base.
    """

    ids: Any
    real: Any
    start: Any
    reach: Any
    slot: Any


@partial(jax.jit, static_argnums=(0, 1, 2), static_argnames="is_unstacked")
def empty_memory(model: Any, rows: int, places: int, *, is_unstacked: bool) -> KeyValues:
    """Makes keys and values of zeros; `is_unstacked` for a base of `unstack_layers`."""
    cache = jax.eval_shape(lambda: model.empty_cache(1, places, model.dtype))

    def zeros(part: Any) -> Any:
        if not is_unstacked:
            return jnp.zeros((rows, *part.shape), part.dtype)
        return tuple(jnp.zeros((rows, *part.shape[1:]), part.dtype) for _ in range(part.shape[0]))

    return _split_heads(KeyValues(zeros(cache.keys), zeros(cache.values)))


def step_of(model: Any, *, is_unstacked: bool) -> tuple[Any, ...]:
    """Returns (a function of the base, its arguments), from which a bank learns how weights are used."""
    batch = example_batch(model.config)
    cache = jax.eval_shape(lambda: model.empty_cache(1, batch["input_ids"].shape[1], model.dtype))
    if is_unstacked:
        layers = cache.keys.shape[0]
        keys, values = ((jax.ShapeDtypeStruct(x.shape[1:], x.dtype),) * layers for x in (cache.keys, cache.values))
        cache = cache._replace(keys=keys, values=values)
    return partial(model.apply, method="extend"), batch, cache


@partial(jax.jit, static_argnums=0, donate_argnums=3)
def extend(
    model: Any, base: Any, adapters: Bank | Selection, memory: KeyValues, tokens: NewTokens, choice: Choice
) -> tuple[Drawn, KeyValues]:
    """Reads the tokens of each row with its adapter; draws the token after the last real one."""
    own, adapter_of = divide_adapters(adapters, tokens.slot)

    def of_row(own: Any, memory: KeyValues, row: NewTokens) -> tuple[jax.Array, KeyValues]:
        return adapt(partial(extend_row, model))(base, adapter_of(own), memory, row)

    logits, memory = jax.vmap(of_row)(own, memory, tokens)
    return draw_rows(logits, choice), _split_heads(memory)


def extend_row(model: Any, base: Any, memory: KeyValues, row: NewTokens) -> tuple[jax.Array, KeyValues]:
    """Returns (the logits after the last real token, (vocab,); keys and values with the row's tokens)."""
    width = row.ids.shape[0]
    held = (jnp.arange(memory.places) < row.start)[None]
    cache = Cache(memory.keys, memory.values, held, row.start, row.reach[None])
    batch = {"input_ids": row.ids[None], "attention_mask": (jnp.arange(width) < row.real).astype(jnp.int32)[None]}
    hidden, cache = model.apply(base, batch, cache, method="extend")
    last = lax.dynamic_index_in_dim(hidden[0], row.real - 1, keepdims=False)
    return model.apply(base, last[None], method="logits")[0], KeyValues(cache.keys, cache.values)


@partial(jax.jit, donate_argnums=0)
def insert(memory: KeyValues, row: Any, other: KeyValues) -> KeyValues:
    """Writes the one row of `other`, which has at most as many places, over a row of the memory."""
    return _split_heads(
        jax.tree.map(
            lambda old, new: lax.dynamic_update_slice(old, new, (row, *[jnp.int32(0)] * (old.ndim - 1))), memory, other
        )
    )


@partial(jax.jit, static_argnums=(2, 3))
def repack(memory: KeyValues, rows: Any, count: int, places: int) -> KeyValues:
    """Makes a memory of `count` rows of `places` places: the rows `rows`, int32 (count,), of this one.

    Rows are cut, or filled up with zeros, at their end.
    """
    room = max(0, places - memory.places)

    def resize(part: jax.Array, axis: int) -> jax.Array:
        picked = jnp.take(part, rows, axis=0, mode="clip")
        widened = jnp.pad(picked, [(0, room if i == axis % part.ndim else 0) for i in range(part.ndim)])
        return lax.slice_in_dim(widened, 0, places, axis=axis)

    keys, values = (jax.tree.map(partial(resize, axis=axis), part) for part, axis in zip(memory, (-1, -2), strict=True))
    return _split_heads(KeyValues(keys, values))


def _split_heads(memory: KeyValues) -> KeyValues:
    """Places every memory on a mesh in one way, so that no program is compiled for another."""
    return jax.tree.map(by_key_heads, memory)
