"""A group of a sweep, ready to train: its data, base and members, and the programs for all of its members."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

import jlora
from jlora.errors import JloraError
from train.cli.signs_of_life import working
from train.config.run_config import RunConfig, learning_rate_of, rows_of_a_step, steps_of
from train.data.bucketing import PlannedBatch, plan_epoch
from train.data.random_streams import Stream, stream_key
from train.devices import placement
from train.loop.evaluation import make_eval_step, run_through
from train.loop.optimizer import Schedule, optimizer, schedule
from train.run.best import Best
from train.run.lengths import choose_lengths
from train.run.state import State
from train.sweep.group_configs import data_of, program_of
from train.sweep.member import Member
from train.sweep.pad_adapters import common_form, have_one_effect, pad, ranks_of
from train.sweep.points import Point
from train.sweep.vmapped_step import make_members_step, map_members
from train.task.protocol import Opened, TrainingTask

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Programs:
    """The jitted functions of a group: `make_members_step`'s, and the evaluation of all members and of one."""

    step: Any
    evaluate: Callable
    evaluate_one: Callable


@dataclasses.dataclass
class Caches:
    """What groups share: {data: what was opened} and {program: the jitted functions}."""

    opened: dict[str, Opened] = dataclasses.field(default_factory=dict)
    programs: dict[tuple[str, int], Programs] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Group:
    """The members that train in one program.

    Attributes:
      config: of the first member; the others differ from it only as `group_configs` says.
      form: the form that the members' adapters are padded to.
      lengths: the padded lengths of batches.
      steps, per_epoch: optimizer steps of a whole run, and of an epoch.
      start: the metrics of the members' starts, if these make the same model and it has been evaluated.
    """

    task: TrainingTask
    config: RunConfig
    opened: Opened
    base: Any
    form: dict[str, Any]
    members: list[Member]
    programs: Programs
    lengths: tuple[int, ...]
    steps: int
    per_epoch: int
    start: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> jax.Array:
        """The root of the dropout keys."""
        return stream_key(self.config.seed, Stream.DROPOUT)

    def rate(self, member: Member) -> Schedule:
        """Returns the learning rate schedule of a member."""
        return schedule(self.config.train, learning_rate_of(member.config), self.steps)

    def plan(self, start: int, end: int) -> list[PlannedBatch]:
        """Returns the planned batches of the steps from `start`, counted from 0, to `end`."""
        lengths, size = self.opened.rows["train"].lengths, rows_of_a_step(self.config)
        epochs = range(start // self.per_epoch, -(-end // self.per_epoch))
        plans = [plan_epoch(lengths, self.lengths, size, self.config.seed, epoch) for epoch in epochs]
        first = start - epochs.start * self.per_epoch
        return [planned for plan in plans for planned in plan][first : first + end - start]

    def batch(self, planned: PlannedBatch) -> Any:
        """Makes the batch of one step, which all members train on."""
        size = rows_of_a_step(self.config)
        return self.task.batch(self.opened, "train", planned, size, np.arange(size))

    def evaluate(self, adapters: Any, members: int) -> list[dict[str, float]]:
        """Computes the metrics of the validation split for the first `members` of the stacked adapters."""
        found = self._run_through(self.programs.evaluate, adapters)
        return [
            self.task.metrics(self.opened, "validation", [(planned, _take(values, i)) for planned, values in found])
            for i in range(members)
        ]

    def evaluate_start(self) -> dict[str, float] | None:
        """Computes the metrics of the start of all members, once; None if they do not start as the same model."""
        if not self.start:
            starts = [pad(one.adapted.adapter, self.form) for one in self.members]
            if not have_one_effect(starts):
                return None
            found = self._run_through(self.programs.evaluate_one, starts[0])
            self.start.update(self.task.metrics(self.opened, "validation", found))
        return self.start

    def _run_through(self, evaluate: Callable, adapter: Any) -> list[tuple[PlannedBatch, Any]]:
        size, rows = self.config.train.eval_batch_size, self.opened.rows["validation"]
        make = partial(self.task.batch, self.opened, "validation")
        return run_through(partial(evaluate, adapter, self.base), rows.lengths, self.lengths, size, make)


def open_group(task: TrainingTask, points: Sequence[Point], configs: Sequence[Any], caches: Caches) -> Group:
    """Reads data and base of a group, and makes the adapters of its members as each of their runs would.

    Raises:
      JloraError: as the run of one of the configs alone; there are several devices.
    """
    first = configs[0]
    if placement.mesh_of(first) is not None:
        raise JloraError("mesh: expected one device, which a sweep trains on; found several. CUDA_VISIBLE_DEVICES=0")
    data = data_of(first)
    if data not in caches.opened:
        caches.opened[data] = task.open(first, None, resume=False)
    opened = caches.opened[data]
    with working(f"reading {first.model}, making {len(points)} adapters"):
        adapted = _build_all(task, configs, opened)
    form = common_form([one.adapter for one in adapted])
    per_epoch, steps = steps_of(first, len(opened.rows["train"]))
    program = (program_of(first), steps)
    if program not in caches.programs:
        caches.programs[program] = _make_programs(task, first, opened, adapted[0].model, steps)
    tx = optimizer(first.train, schedule(first.train, 1.0, steps))  # the state does not depend on the rate
    members = [
        _make_member(point, config, one, form, tx) for point, config, one in zip(points, configs, adapted, strict=True)
    ]
    lengths = _choose_lengths(first, opened, adapted[0].base)
    base = adapted[0].base
    return Group(task, first, opened, base, form, members, caches.programs[program], lengths, steps, per_epoch)


def _build_all(task: TrainingTask, configs: Sequence[RunConfig], opened: Opened) -> list[Any]:
    """Returns an Adapted for each config, all with one base; configs with equal adapters share it."""
    built: dict[str, Any] = {}
    for config in configs:
        made = config.lora.model_dump_json()
        if made not in built:
            adapted = task.build(config, opened, None)
            base = next(iter(built.values())).base if built else adapted.base
            built[made] = dataclasses.replace(adapted, base=base)
    return [built[config.lora.model_dump_json()] for config in configs]


def _make_programs(task: TrainingTask, config: RunConfig, opened: Opened, model: Any, steps: int) -> Programs:
    forward = task.forward(model)
    return Programs(
        step=make_members_step(task.loss(config, opened, model), config.train, steps),
        evaluate=make_eval_step(map_members(forward)),
        evaluate_one=make_eval_step(forward),
    )


def _make_member(point: Point, config: RunConfig, adapted: Any, form: Any, tx: Any) -> Member:
    trainable, frozen = jlora.split(pad(adapted.adapter, form))
    trainable, frozen, moments = jax.device_get((trainable, frozen, tx.init(trainable)))
    state = State(trainable, moments, np.int32(0))  # type: ignore[arg-type]
    return Member(point, config, adapted, ranks_of(adapted.adapter), frozen, state, Best(trainable))


def _choose_lengths(config: RunConfig, opened: Opened, base: Any) -> tuple[int, ...]:
    if opened.width is not None:
        return (opened.width,)
    return choose_lengths(config, {name: rows.lengths for name, rows in opened.rows.items()}, base)


def _take(tree: Any, index: int) -> Any:
    return jax.tree.map(lambda x: x[index], tree)
