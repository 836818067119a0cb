"""Evaluates members of a group: all in one program where they share their rows, one after another where they do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax

from jlora import combine
from train.data.bucketing import PlannedBatch
from train.loop.evaluation import run_through
from train.sweep.group import Group
from train.sweep.member import Member
from train.sweep.pad_adapters import have_one_effect, pad, stack_trees


def evaluate_members(group: Group, adapters: Any, members: Mapping[int, Member]) -> dict[int, dict[str, float]]:
    """Computes the metrics of the validation split, {place: {metric: value}}.

    Args:
      adapters: padded and stacked.
      members: {place among the adapters: member}.
    """
    if not group.shares_rows:
        return {place: _evaluate_one(group, _take(adapters, place), one) for place, one in members.items()}
    first = group.members[0]
    found = _run_through(group, group.programs.evaluate, adapters, first)
    return {
        place: group.task.metrics(first.opened, "validation", [(planned, _take(v, place)) for planned, v in found])
        for place in members
    }


def evaluate_starts(group: Group, members: Mapping[int, Member], slots: int) -> dict[int, dict[str, float]]:
    """Computes the metrics of members' initial adapters, {place: {metric: value}}; none has been evaluated before.

    If members share their rows and their starts make the same model, that is evaluated once, and kept in `group.start`.

    Args:
      members: {place: member}.
      slots: how many adapters the compiled program takes.
    """
    if not group.shares_rows:
        return {place: _evaluate_one(group, _start(one), one) for place, one in members.items()}
    if not group.start:
        padded = [pad(one.adapted.adapter, group.form) for one in group.members]
        if not have_one_effect(padded):
            filled = [members.get(place, next(iter(members.values()))) for place in range(slots)]
            return evaluate_members(group, stack_trees([_start(one) for one in filled]), members)
        group.start.update(_evaluate_one(group, padded[0], group.members[0]))
    return dict.fromkeys(members, group.start)


def _start(member: Member) -> Any:
    return combine(member.best.trainable, member.frozen)


def _evaluate_one(group: Group, adapter: Any, member: Member) -> dict[str, float]:
    found = _run_through(group, group.programs.evaluate_one, adapter, member)
    return group.task.metrics(member.opened, "validation", found)


def _run_through(group: Group, evaluate: Callable, adapter: Any, member: Member) -> list[tuple[PlannedBatch, Any]]:
    size, rows = group.config.train.eval_batch_size, member.opened.rows["validation"]
    make = partial(group.task.batch, member.opened, "validation")
    return run_through(partial(evaluate, adapter, group.base), rows.lengths, member.lengths, size, make)


def _take(tree: Any, index: int) -> Any:
    return jax.tree.map(lambda x: x[index], tree)
