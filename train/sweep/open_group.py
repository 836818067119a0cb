"""Opens a group of a sweep: reads its data and base, makes the members' adapters and the programs for all of them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import jlora
from jlora.errors import JloraError
from train.cli.log_slow_steps import working
from train.config.run_config import RunConfig, rows_of_a_step, steps_of
from train.data.bucketing import bucket_lengths
from train.devices import placement
from train.loop.evaluation import make_eval_step
from train.loop.optimizer import optimizer, schedule
from train.run.best import Best
from train.run.padded_lengths import MOST, choose_lengths, program_tokens
from train.run.state import State
from train.sweep.group import Group, Programs, share_rows
from train.sweep.group_configs import data_of, program_of
from train.sweep.member import Member
from train.sweep.pad_adapters import common_form, pad, ranks_of
from train.sweep.points import Point
from train.sweep.vmapped_step import make_members_step, map_members
from train.task.protocol import Opened, TrainingTask

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Caches:
    """What groups share: {data: what was opened} and {program: the jitted functions}."""

    opened: dict[str, Opened] = dataclasses.field(default_factory=dict)
    programs: dict[str, Programs] = dataclasses.field(default_factory=dict)


def open_data(task: TrainingTask, config: RunConfig, caches: Caches) -> Opened:
    """Reads everything of a run except its weights, once for all runs with the same rows.

    Raises:
      JloraError: as the run alone; there are several devices.
    """
    if placement.mesh_of(config) is not None:
        raise JloraError("mesh: expected one device, which a sweep trains on; found several. CUDA_VISIBLE_DEVICES=0")
    data = data_of(config)
    if data not in caches.opened:
        caches.opened[data] = task.open(config, None, resume=False)
    return caches.opened[data]


def open_group(task: TrainingTask, points: Sequence[Point], configs: Sequence[Any], caches: Caches) -> Group:
    """Reads data and base of a group, and makes the adapters of its members as each of their runs would.

    Raises:
      JloraError: as the run of one of the configs alone; there are several devices.
    """
    first, opened = configs[0], [open_data(task, config, caches) for config in configs]
    with working(f"reading {first.model}, making {len(points)} adapters"):
        adapted = _build_all(task, configs, opened)
    form = common_form([one.adapter for one in adapted])
    base = adapted[0].base
    tx = optimizer(first.train, schedule(first.train, 1.0, 1), 1.0)  # the state depends on neither rate
    lengths = {id(one): _choose_lengths(config, one, base) for one, config in zip(opened, configs, strict=True)}
    members = [
        _make_member(*each, lengths[id(each[2])], form, tx)
        for each in zip(points, configs, opened, adapted, strict=True)
    ]
    program = program_of(configs)
    if program not in caches.programs:
        caches.programs[program] = _make_programs(task, members)
    return Group(task, first, base, form, members, caches.programs[program], _step_lengths(members, base))


def _build_all(task: TrainingTask, configs: Sequence[RunConfig], opened: Sequence[Opened]) -> list[Any]:
    """Returns an Adapted for each config, all with one base; configs with equal adapters share it."""
    built: dict[str, Any] = {}
    for config, data in zip(configs, opened, strict=True):
        made = config.lora.model_dump_json()
        if made not in built:
            adapted = task.build(config, data, None)
            base = next(iter(built.values())).base if built else adapted.base
            built[made] = dataclasses.replace(adapted, base=base)
    return [built[config.lora.model_dump_json()] for config in configs]


def _make_programs(task: TrainingTask, members: Sequence[Member]) -> Programs:
    first = members[0]
    forward = task.forward(first.adapted.model)
    loss = task.loss(first.config, first.opened, first.adapted.model)
    return Programs(
        step=make_members_step(loss, first.config.train, own_rows=not share_rows(members)),
        evaluate=make_eval_step(map_members(forward)),
        evaluate_one=make_eval_step(forward),
    )


def _make_member(
    point: Point, config: RunConfig, opened: Opened, adapted: Any, lengths: tuple[int, ...], form: Any, tx: Any
) -> Member:
    trainable, frozen = jlora.split(pad(adapted.adapter, form))
    trainable, frozen, moments = jax.device_get((trainable, frozen, tx.init(trainable)))
    per_epoch, steps = steps_of(config, len(opened.rows["train"]))
    return Member(
        point,
        config,
        opened,
        adapted,
        lengths=lengths,
        per_epoch=per_epoch,
        steps=steps,
        ranks=ranks_of(adapted.adapter),
        frozen=frozen,
        state=State(trainable, moments, np.int32(0)),  # type: ignore[arg-type]
        best=Best(trainable),
    )


def _choose_lengths(config: RunConfig, opened: Opened, base: Any) -> tuple[int, ...]:
    if opened.width is not None:
        return (opened.width,)
    return choose_lengths(config, {name: rows.lengths for name, rows in opened.rows.items()}, base)


def _step_lengths(members: Sequence[Member], base: Any) -> tuple[int, ...]:
    """Chooses the padded lengths of the steps' batches, in which the longest member's batch has to fit.

    The longest batches of members with rows of their own may have as many lengths as all members together: that many
    programs would be compiled.
    """
    first = members[0]
    if share_rows(members):
        return first.lengths
    longest = np.zeros(max(one.steps for one in members), np.int64)
    for member in members:
        of_member = [planned.length for planned in member.plan(0, member.steps)]
        longest[: member.steps] = np.maximum(longest[: member.steps], of_member)
    count = first.config.train.bucket_count
    if count is not None:
        return bucket_lengths(longest, count, multiple=1)
    weights = np.full(len(longest), len(members) * rows_of_a_step(first.config))
    return bucket_lengths(longest, MOST, multiple=1, weights=weights, price=program_tokens(first.config, base))
