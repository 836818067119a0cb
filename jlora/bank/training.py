"""Trains the adapters of a bank together: each slot with its own rows, optimizer state, step number and settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jlora.bank.adapt_many import group_keys, split_rows
from jlora.bank.bank import Bank
from jlora.bank.gather import as_slots, gather_adapters
from jlora.lora.entries import Entry, combine, split
from jlora.transform.adapt import adapt

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PyTree

MakeOptimizer = Callable[[Mapping[str, Any]], optax.GradientTransformation]
"""make_optimizer(hyperparameters): the optimizer of one slot; its numbers are traced, so they may differ by slot."""


class OptimizerStates(NamedTuple):
    """The optimizers of all places of a bank.

    Attributes:
      inner: the optimizer's state, arrays (slots + 1, ...).
      step: int32 (slots + 1,), how many steps each slot has made.
    """

    inner: Any
    step: Int[Array, " places"]


def init_optimizers(make_optimizer: MakeOptimizer, bank: Bank, hyperparameters: Mapping[str, Any]) -> OptimizerStates:
    """Makes the optimizer states of all slots, before their first step.

    Args:
      hyperparameters: {name: a number} for the optimizer of one slot; only the state's shapes depend on it.
    """
    trainable, _ = split(bank.entries)
    inner = jax.vmap(make_optimizer(hyperparameters).init)(trainable)
    return OptimizerStates(inner, jnp.zeros(bank.slots + 1, jnp.int32))


def forward_backward(
    loss: Callable, base: PyTree, bank: Bank, slots: Int[Array, " groups"], *args: Any, dropout_key: Any = None
) -> tuple[Float[Array, " groups"], dict[str, Entry]]:
    """Computes the loss of each slot, and its gradients from its own rows alone.

    Args:
      loss: loss(base, *args), one number; any function that `adapt` takes.
      slots: int32 (groups,), slots of the bank. An empty slot has a loss of NaN; -1 is the base.
      args: arrays with the rows on their first axis: the first rows / groups are for slots[0], and so on.
      dropout_key: as for `adapt_many`.

    Returns:
      (losses (groups,); gradients, the tree of `jlora.split`'s trainable part, arrays (groups, ...)).
    """
    slots = as_slots(slots)
    rows = jax.tree.map(lambda x: split_rows(x, slots.shape[0], "an argument"), args)

    def of_group(adapter: dict[str, Entry], rows: Any, key: Any) -> Any:
        trainable, frozen = split(adapter)

        def total(trainable: Any) -> jax.Array:
            return adapt(loss)(base, combine(trainable, frozen), *rows, dropout_key=key)

        return jax.value_and_grad(total)(trainable)

    return jax.vmap(of_group)(gather_adapters(bank, slots), rows, group_keys(dropout_key, slots.shape[0]))


def optim_step(
    make_optimizer: MakeOptimizer,
    bank: Bank,
    states: OptimizerStates,
    slots: Int[Array, " groups"],
    gradients: dict[str, Entry],
    hyperparameters: Mapping[str, Float[Array, " groups"]],
) -> tuple[Bank, OptimizerStates]:
    """Makes one optimizer step in each of the slots; nothing else in bank and states changes by a bit.

    Args:
      make_optimizer: as for `init_optimizers`. Its schedules use the count in `states.inner`, not `states.step`.
      states: of all slots; `put` does not reset them.
      slots: int32 (groups,), each at most once, which is not checked; slots that the bank does not have, and -1, are
        left out.
      gradients: as `forward_backward` returns them for these slots.
      hyperparameters: {name: a number for each of the slots, (groups,)}.
    """
    slots = as_slots(slots)
    place = jnp.where((slots >= 0) & (slots < bank.slots), slots, bank.slots + 1)  # places beyond the end are dropped
    trainable, frozen = split(bank.entries)
    old = jax.tree.map(lambda x: jnp.take(x, place, axis=0, mode="clip"), (trainable, states.inner))

    def of_group(trainable: Any, inner: Any, gradients: Any, hyperparameters: Any) -> tuple[Any, Any]:
        updates, inner = make_optimizer(hyperparameters).update(gradients, inner, trainable)
        return optax.apply_updates(trainable, updates), inner

    new = jax.vmap(of_group)(old[0], old[1], gradients, dict(hyperparameters))
    written, inner = jax.tree.map(
        lambda x, values: x.at[place].set(values, mode="drop"), (trainable, states.inner), new
    )
    step = states.step.at[place].add(1, mode="drop")
    return dataclasses.replace(bank, entries=combine(written, frozen)), OptimizerStates(inner, step)
