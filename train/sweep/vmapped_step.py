"""One optimizer step of several runs in one program: `train.loop.step`'s, mapped over the runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from train.config.sections import TrainSection
from train.devices.compilation import jit
from train.loop.optimizer import optimizer
from train.loop.step import TotalLoss, make_train_step
from train.run.state import State


def make_members_step(total_loss: TotalLoss, train: TrainSection, *, own_rows: bool = False) -> Callable:
    """Makes members_step(rates, ratios, state, frozen, base, batch, key) -> (state, {"loss", "grad_norm"}).

    It does for n members what the step of `make_train_step` does for each alone, and donates the state. The arguments
    have a leading axis of members, except the state's step, base, key and, unless `own_rows`, batch, which are the same
    for all: what depends only on these, such as dropout masks, is computed once. Nothing passes from one member to
    another, so a member that diverges changes no other.

    Args:
      total_loss, train: as for `make_train_step` and `optimizer`; the schedule of `train` is not read.
      own_rows: whether each member has a batch of its own.

    The function returned takes `rates`, float32 (n,), the learning rates of this step, and `ratios`, float32 (n,), by
    which the rates are multiplied for B (LoRA+); its values are arrays (n,).
    """

    def member_step(
        rate: jax.Array, ratio: jax.Array, state: State, frozen: Any, base: Any, batch: Any, key: jax.Array
    ) -> Any:
        tx = optimizer(train, lambda _: rate, ratio)
        step: Any = make_train_step(total_loss, tx, train.gradient_accumulation_steps)
        return step.__wrapped__(state, frozen, base, batch, key)

    in_axes = (0, 0, State(0, 0, None), 0, None, 0 if own_rows else None, None)  # type: ignore[arg-type]
    out_axes = (State(0, 0, None), 0)  # type: ignore[arg-type]
    return jit(_map(member_step, in_axes, out_axes), donate_argnums=2)


def map_members(forward: Callable[[Any, Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """Maps the function of `TrainingTask.forward` over the adapter's first axis, the members."""
    return _map(forward, (0, None, None), 0)


def _map(fn: Callable[..., Any], in_axes: Any, out_axes: Any) -> Callable[..., Any]:
    """Makes `jax.vmap(fn, in_axes, out_axes)`, which maps a single member without an axis of length 1.

    On a CPU, XLA refuses to run some products of bfloat16 from which it has removed such an axis.
    """

    def mapped(*args: Any) -> Any:
        if jax.tree.leaves(args[0])[0].shape[0] > 1:
            return jax.vmap(fn, in_axes, out_axes)(*args)
        taken = _change_mapped(in_axes, args, lambda x: x[0])
        return _change_mapped(out_axes, fn(*taken), lambda x: x[None])

    return mapped


def _change_mapped(axes: Any, tree: Any, change: Callable[[jax.Array], jax.Array]) -> Any:
    """Changes the arrays of the tree where `axes`, a prefix of it, is not None."""
    return jax.tree.map(
        lambda axis, part: part if axis is None else jax.tree.map(change, part),
        axes,
        tree,
        is_leaf=lambda axis: axis is None,
    )
