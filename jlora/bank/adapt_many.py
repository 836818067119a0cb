"""`adapt_many`: turns a function of a base tree into one whose rows may each have another adapter of a bank."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jlora.bank.bank import Bank
from jlora.bank.gather import as_slots
from jlora.bank.selection import Selection, divide_adapters
from jlora.errors import JloraError
from jlora.transform.adapt import adapt
from jlora.tree.leaf_paths import is_array

if TYPE_CHECKING:
    from jaxtyping import Array, Int


def adapt_many(fn: Callable) -> Callable:
    """Makes `fn(base, *args, **kwargs)` a function of `(base, bank, slot, *args, dropout_key=None, **kwargs)`.

    `fn` must treat the rows of its arguments independently, as models do. The products with the base's weights are
    computed once for all rows; the low-rank products are those of each row's own adapter, which are gathered from the
    bank. Nothing is compiled again when adapters are put into the bank or dropped. A `Selection` in the bank's place
    gathers nothing: where few adapters are used for many steps, `select` them once.

    `slot` is an int32 array (groups,). Rows are divided evenly: with as many groups as rows each row has its own
    adapter; with fewer, each adapter is used for rows / groups consecutive rows, which is quicker.

    In the function returned:
      bank: a Bank or a Selection.
      slot: a slot of the bank, or a place of the selection; -1 is the base. A slot without an adapter, or one that is
        not there, gives NaN.
      args, kwargs: their arrays have the rows on their first axis; all else (numbers, strings) is passed unchanged.
      dropout_key: one JAX key, folded with the number of the group, or keys (groups,); None is without dropout.

    The function returned gives what `fn` gives, with the rows on the first axis of each array.

    Raises (the function returned):
      JloraError: slots that are not integers (groups,); an array without a first axis of rows, in the arguments or in
        the result; a number of rows that the groups do not divide.
    """

    @functools.wraps(fn)
    def call_adapted(
        base: Any,
        bank: Bank | Selection,
        slot: Int[Array, " groups"],
        *args: Any,
        dropout_key: Any = None,
        **kwargs: Any,
    ) -> Any:
        slot = as_slots(slot)
        leaves, structure = jax.tree.flatten((args, kwargs))
        arrays = {i: leaf for i, leaf in enumerate(leaves) if is_array(leaf)}
        groups = {i: split_rows(array, slot.shape[0], f"argument {i}") for i, array in arrays.items()}

        own, adapter_of = divide_adapters(bank, slot)

        def call_group(own: Any, found: dict[int, Any], key: Any) -> Any:
            filled = [found.get(i, leaf) for i, leaf in enumerate(leaves)]
            args, kwargs = jax.tree.unflatten(structure, filled)
            rows = {x.shape[0] for x in found.values()}
            result = adapt(fn)(base, adapter_of(own), *args, dropout_key=key, **kwargs)
            return jax.tree.map(functools.partial(_require_rows, rows), result)

        keys = group_keys(dropout_key, slot.shape[0])
        results = jax.vmap(call_group)(own, groups, keys)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)

    return call_adapted


def group_keys(dropout_key: Any, groups: int) -> Any:
    """Returns keys (groups,) for one key or for keys (groups,); None for None."""
    if dropout_key is None or jnp.ndim(jax.random.key_data(dropout_key)) > 1:
        return dropout_key
    return jax.vmap(functools.partial(jax.random.fold_in, dropout_key))(jnp.arange(groups))


def split_rows(array: Any, groups: int, where: str) -> jax.Array:
    """Reshapes (rows, ...) to (groups, rows / groups, ...)."""
    rows = jnp.shape(array)[:1]
    if not rows or rows[0] % groups:
        raise JloraError(
            f"adapt_many: {where}: expected a first axis of rows that {groups} slots divide evenly, found the shape"
            f" {jnp.shape(array)}"
        )
    return jnp.reshape(array, (groups, -1, *array.shape[1:])) if rows[0] else array


def _require_rows(rows: set[int], result: jax.Array) -> jax.Array:
    if not result.ndim or result.shape[0] not in rows:
        raise JloraError(
            f"adapt_many: expected a function whose results have the rows ({min(rows)} a slot) on their first axis,"
            f" found the shape {result.shape}; jlora.forward_backward takes a function that returns one number"
        )
    return result
