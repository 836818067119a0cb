"""Runs a sweep: opens its groups one after another, trains their members together, and compares them."""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
import time
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from jlora.errors import JloraError
from train.cli.exit_codes import show
from train.cli.progress import clock
from train.cli.signals import Stop, Stopped, listening
from train.config.command import Flags
from train.config.run_config import RunConfig, steps_of
from train.devices.compilation import use_compilation_cache
from train.planning.parameter_table import align
from train.run.lock import hold_lock
from train.run.manifest import describe_data
from train.sweep.choose_slots import choose_slots
from train.sweep.config import BEST, SweepConfig, read_sweep
from train.sweep.finish_member import claim_member, export_best, finish_member, is_finished
from train.sweep.folder import claim_sweep
from train.sweep.group import Group
from train.sweep.group_configs import data_of, group_configs, split_by_model
from train.sweep.member import Member
from train.sweep.open_group import Caches, open_data, open_group
from train.sweep.points import Point, list_points, make_point_config
from train.sweep.results.compare_runs import (
    Result,
    are_comparable,
    compare_at,
    have_same_validation,
    read_results,
    sort_results,
)
from train.sweep.results.picture import draw_sweep
from train.sweep.results.table import write_tables
from train.sweep.train_stage import train_stage
from train.task.protocol import Opened, TrainingTask

logger = logging.getLogger(__name__)


def run_sweep(task: TrainingTask, config: RunConfig, flags: Flags, *, is_offline: bool = False) -> None:
    """Trains the runs of `flags.sweep`, and writes tables, picture and the best run's files into `output_dir`.

    Raises:
      JloraError: an error that the user can fix.
      Stopped: a signal or train.max_hours ended the sweep; each run's newest checkpoint has its latest state.
    """
    begin = time.monotonic()
    use_compilation_cache()
    sweep = _Sweep(task, config, _read(flags, config), is_offline)
    if sweep.spec.halving is not None:
        sweep.require_comparable(sweep.spec.halving.at)
    if flags.dry_run:
        show(sweep.describe())
        return
    folder = Path(config.output_dir)
    with hold_lock(folder):
        if claim_sweep(folder, config, sweep.spec, flags) == "resumed":
            finished = sum(map(is_finished, sweep.configs))
            logger.info("resumed: %d of %d runs are finished", finished, len(sweep.configs))
        hours = config.train.max_hours
        is_done = False
        try:
            with listening(math.inf if hours is None else begin + 3600 * hours) as stop:
                if sweep.train(stop):
                    sweep.conclude()
                    is_done = True
        except Stopped:
            if not is_done:  # a signal that came after the last step has changed nothing
                raise
        if is_done:
            _say_what_is_there(folder, clock(time.monotonic() - begin))


def _say_what_is_there(folder: Path, seconds: str) -> None:
    names = ("table.md", "table.csv", "sweep.png", BEST)
    there = "  ".join(name + "/" * (name == BEST) for name in names if (folder / name).exists())
    logger.info("done in %s. In %s:", seconds, folder)
    logger.info("  %s, and a folder for each run with its adapter", there)


def _read(flags: Flags, config: RunConfig) -> SweepConfig:
    if flags.sweep is None:
        raise JloraError("--sweep: expected a YAML file with the runs, such as configs/sweeps/rank_lr.yaml; found none")
    if config.tracker != "none":
        raise JloraError(f"tracker: expected none in a sweep, whose runs train at once; found {config.tracker}")
    return read_sweep(Path(flags.sweep))


@dataclasses.dataclass
class _Sweep:
    """A sweep while it runs; `opened` is the number of the group that is in memory, and the group."""

    task: TrainingTask
    config: RunConfig
    spec: SweepConfig
    is_offline: bool

    def __post_init__(self) -> None:
        self.points: list[Point] = list_points(self.spec, self.config)
        self.configs: list[Any] = [make_point_config(self.config, point) for point in self.points]
        self.caches = Caches()
        self.slots: dict[int, int] = {}
        self.opened: tuple[int, Group] | None = None

    @cached_property
    def groups(self) -> list[list[int]]:
        """The runs that train together; reads the data of those with rows of their own."""
        groups = []
        for indices in group_configs(self.configs):
            configs = [self.configs[index] for index in indices]
            if len({data_of(config) for config in configs}) == 1:
                groups.append(indices)
            else:
                groups += split_by_model(indices, [self._open_data(index) for index in indices])
        return groups

    def _open_data(self, index: int) -> Opened:
        logger.info("%s:", self.points[index].name)
        return open_data(self.task, self.configs[index], self.caches)

    def require_comparable(self, at: Sequence[int]) -> None:
        """Raises JloraError if halving could not compare the runs at all of these steps."""
        opened = [open_data(self.task, config, self.caches) for config in self.configs]
        different = list({id(one): one for one in opened}.values())
        if not have_same_validation([describe_data(one.contents) for one in different]):
            raise JloraError(
                "--sweep: search: halving: expected runs with the same validation tokens, found others with "
                f"{', '.join(self.points[0].values)}. Set data.validation, and one model and data.max_length for all"
            )
        if len(metrics := {one.metric for one in different}) > 1:
            raise JloraError(f"--sweep: search: halving: expected one metric, found {', '.join(sorted(metrics))}")
        pairs = zip(self.configs, opened, strict=True)
        last = min(steps_of(config, len(one.rows["train"]))[1] for config, one in pairs)
        if at[-1] >= last:
            raise JloraError(f"--sweep: halving.at: expected steps before {last}, a run's last one; found {at[-1]}")

    def describe(self) -> str:
        """Returns the plan as text: for each group its members, how many train at once, and bytes."""
        lines = [("group", "runs", "at once", "bytes in all", "steps", "")]
        for number, indices in enumerate(self.groups):
            group = self.open(number)
            slots, memory = choose_slots(group, len(indices), self.spec.at_once)
            size = f"{memory.in_all / 2**20:,.0f} MiB"
            first = self.points[indices[0]].name
            named = first if len(indices) == 1 else f"{first} ... {self.points[indices[-1]].name}"
            fewest, most = (choose(one.steps for one in group.members) for choose in (min, max))
            steps = f"{most}" if fewest == most else f"{fewest} to {most}"
            lines.append((f"{number + 1}", f"{len(indices)}", f"{slots}", size, steps, named))
        return f"{len(self.points)} runs in {len(self.groups)} groups\n{align(lines, right=[0, 1, 2, 3, 4])}"

    def open(self, number: int) -> Group:
        """Returns a group; only the newest one stays in memory."""
        if self.opened is None or self.opened[0] != number:
            self.opened = None
            indices = self.groups[number]
            points, configs = [self.points[i] for i in indices], [self.configs[i] for i in indices]
            self.opened = number, open_group(self.task, points, configs, self.caches)
        return self.opened[1]

    def train(self, stop: Stop) -> bool:
        """Trains all runs; returns False if a signal cut it short."""
        if all(map(is_finished, self.configs)):
            return True
        running = list(range(len(self.points)))
        rungs = [] if self.spec.halving is None else self.spec.halving.at
        for end in [*rungs, None]:
            for number, indices in enumerate(self.groups):
                left = [index for index in indices if index in running]
                if left and not self.train_group(number, left, end, stop):
                    return False
            if end is not None:
                running = self.halve(running, end)
        return True

    def train_group(self, number: int, indices: Sequence[int], end: int | None, stop: Stop) -> bool:
        """Trains some of a group's members to step `end`, or to their last one; False if a signal cut it short."""
        if all(is_finished(self.configs[index]) for index in indices):
            return True
        group = self.open(number)
        places = {index: place for place, index in enumerate(self.groups[number])}
        members = [group.members[places[index]] for index in indices]
        size = min(len(members), self.slots.get(number) or self._choose_slots(number, group, len(members)))
        for first in range(0, len(members), size):
            left = [one for one in members[first : first + size] if not is_finished(one.config)]
            if left and not self._train_members(group, left, size, end, stop):
                return False
        return True

    def halve(self, running: Sequence[int], step: int) -> list[int]:
        """Ends the worse runs after a step, and returns the others."""
        assert self.spec.halving is not None
        metric = self.open(0).metric if self.opened is None else self.opened[1].metric
        order = compare_at([self.configs[index] for index in running], step, metric)
        ranked = [running[place] for place in order]
        kept = ranked[: max(1, math.ceil(self.spec.halving.keep * len(running)))]
        logger.info("step %d: %d of %d runs go on", step, len(kept), len(running))
        for number, indices in enumerate(self.groups):
            for place, index in enumerate(indices):
                if index in running and index not in kept and not is_finished(self.configs[index]):
                    self._finish(self.open(number), self.open(number).members[place], f"halved at step {step}")
        return [index for index in running if index in kept]

    def conclude(self) -> None:
        """Writes the tables and, if the runs can be compared, the picture and the files of the best one."""
        folder, results = Path(self.config.output_dir), read_results(self.points, self.configs)
        if are_comparable(self.configs, results):
            ranked = sort_results(results)
            draw_sweep(folder / "sweep.png", results, folder.name)
            self._export_best(ranked[0])
        else:
            ranked = results
            logger.info("the runs have other validation tokens or metrics than each other: none is the best one")
        write_tables(folder, ranked)
        for config in self.configs:
            shutil.rmtree(Path(config.output_dir) / "checkpoints", ignore_errors=True)

    def _export_best(self, best: Result) -> None:
        folder = Path(self.config.output_dir)
        if best.value is None:
            logger.warning("%s: all runs have diverged; try smaller learning rates", folder)
            return
        logger.info("best: %s  %s %.4f", best.point.name, best.metric, best.value)
        if (folder / BEST / "report.json").exists():
            return
        index = [point.name for point in self.points].index(best.point.name)
        number = next(n for n, indices in enumerate(self.groups) if index in indices)
        group = self.open(number)
        member = group.members[self.groups[number].index(index)]
        member.restore_newest()
        export_best(group, member, self.config, is_offline=self.is_offline)

    def _choose_slots(self, number: int, group: Group, members: int) -> int:
        self.slots[number], memory = choose_slots(group, members, self.spec.at_once)
        logger.info(
            "group %d of %d: %d runs, %d at once, %s MiB in a step",
            number + 1, len(self.groups), members, self.slots[number], f"{memory.in_all / 2**20:,.0f}",
        )  # fmt: skip
        return self.slots[number]

    def _train_members(self, group: Group, members: Sequence[Member], slots: int, rung: int | None, stop: Stop) -> bool:
        """Trains members to a rung of the halving, or to their last steps, where those that end first leave."""
        known: dict[Any, dict[str, str]] = {}
        for member in members:
            claim_member(group, member, known)
        common = set.intersection(*({0, *member.saved_steps()} for member in members))
        if (start := max(common)) > 0:
            logger.info("%d runs go on from step %d", len(members), start)
            for member in members:
                member.restore(start)
        finish = partial(finish_member, is_offline=self.is_offline)
        for end in sorted({one.steps if rung is None else min(rung, one.steps) for one in members}):
            left = [one for one in members if one.steps >= end and not is_finished(one.config)]
            size = slots if len(left) == len(members) else len(left)
            is_behind = bool(left) and left[0].step < end
            if is_behind and not train_stage(group, left, size, end, stop, finish, compares=end == rung):
                return False
            for member in left:
                if end == member.steps and not is_finished(member.config):
                    self._finish(group, member, f"at its last step, {end}")
        return True

    def _finish(self, group: Group, member: Member, ended: str) -> None:
        if member.step == 0:  # the group was opened again
            member.restore_newest()
        with member.open_record() as recorder:
            finish_member(group, member, recorder, ended, is_offline=self.is_offline)
