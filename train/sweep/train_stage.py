"""Trains members of a group together from one step to another: steps, evaluations, records and checkpoints."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jlora import combine
from train.cli.progress import clock
from train.cli.signals import Stop
from train.run.best import judge
from train.run.recorder import Recorder
from train.run.state import State
from train.sweep.evaluate_members import evaluate_members, evaluate_starts
from train.sweep.group import Group, StepPlan
from train.sweep.member import Member
from train.sweep.pad_adapters import stack_trees

logger = logging.getLogger(__name__)

EndMember = Callable[[Group, Member, Recorder, str], None]
"""end_member(group, member, its record, how it ended): "early", after train.early_stopping_patience, or "diverged"."""


def train_stage(
    group: Group,
    members: Sequence[Member],
    slots: int,
    end: int,
    stop: Stop,
    end_member: EndMember,
    *,
    compares: bool = False,
) -> bool:
    """Trains members to step `end`; returns False if a signal cut it short.

    All members must be at the same step. Checkpoints are written when they are due, at step `end`, and where a signal
    ends the stage. A member that diverges or stops early keeps its slot until then, and its results are ignored.

    Args:
      slots: the number of members of the program, at least as many as `members`; the others are copies.
      end: at most the last step of each member.
      end_member: called once for each member that ends before the stage does.
      compares: whether all members are evaluated at `end`, also those whose evaluation is not due.
    """
    with ExitStack() as records:
        opened = [records.enter_context(member.open_record()) for member in members]
        stage = _Stage(group, list(members), opened, slots, end, end_member)
        for step, planned in enumerate(group.plan(members, stage.start, end), stage.start + 1):
            stage.make_step(step, planned)
            stopped = stop.is_requested()
            evaluated = stage.find_due(step, "evaluate") if not (compares and step == end) else list(stage.active)
            logged, saves = stage.find_due(step, "log"), step == end or bool(stage.find_due(step, "save"))
            if logged or evaluated or saves or stopped:
                stage.read(step, logged)
            if evaluated:
                stage.evaluate(step, evaluated)
            if saves or stopped:
                stage.save()
            if stopped:
                return False
            if not stage.active:
                break
    return True


def _is_due(member: Member, step: int, what: Literal["log", "evaluate", "save"]) -> bool:
    """Returns whether a log line, an evaluation or a checkpoint of a member is due at this step."""
    train = member.config.train
    every = train.eval_every or member.per_epoch
    periods = {"log": train.log_every, "evaluate": every, "save": train.checkpoint_every or every}
    return step % periods[what] == 0 or step == member.steps


@dataclasses.dataclass
class _Stage:
    """What changes from step to step.

    Attributes:
      state: of all slots, on the device.
      active: the indices of the members that have not ended.
      unread: the values of steps that were not looked at yet: a step may still run while the next batch is made.
    """

    group: Group
    members: list[Member]
    records: list[Recorder]
    slots: int
    end: int
    end_member: EndMember

    def __post_init__(self) -> None:
        filled = [*self.members, *[self.members[-1]] * (self.slots - len(self.members))]
        self.start = self.members[0].step
        moving = stack_trees([(one.state.trainable, one.state.optimizer) for one in filled])
        self.state = State(moving[0], moving[1], jnp.int32(self.start))
        self.frozen = stack_trees([one.frozen for one in filled])
        self.rates = np.stack([one.learning_rates(self.start, self.end) for one in filled], 1)
        self.ratios = np.array([one.config.train.loraplus_lr_ratio or 1 for one in filled], np.float32)
        self.active = list(range(len(self.members)))
        self.unread: list[dict[str, Any]] = []
        self.begin, self.counts = time.monotonic(), [0] * len(self.members)
        self.before = [one.seconds for one in self.members]

    def make_step(self, step: int, planned: StepPlan) -> None:
        group = self.group
        batch, rates = group.batch(planned, self.members, self.slots), self.rates[step - 1 - self.start]
        moving = (rates, self.ratios, self.state)
        self.state, values = group.programs.step(*moving, self.frozen, group.base, batch, group.key)
        self.unread.append(values)
        for index, member in enumerate(self.members):
            lengths, of_member = member.opened.rows["train"].lengths, planned[index if len(planned) > 1 else 0]
            self.counts[index] += (
                int(lengths[of_member.rows].sum()) if group.task.unit == "tokens" else len(of_member.rows)
            )

    def find_due(self, step: int, what: Literal["log", "evaluate", "save"]) -> list[int]:
        """Returns the indices of the members that have not ended and for which this is due."""
        return [index for index in self.active if _is_due(self.members[index], step, what)]

    def read(self, step: int, logged: Sequence[int]) -> None:
        """Reads the values of the last steps: ends members that have diverged, and records those of `logged`."""
        values = [jax.device_get(one) for one in self.unread]
        self.unread.clear()
        for index in list(self.active):
            member, of_steps = self.members[index], [{k: float(v[index]) for k, v in one.items()} for one in values]
            for number, found in enumerate(of_steps, step - len(of_steps) + 1):
                member.losses.append(found["loss"])
                if not all(map(math.isfinite, found.values())):
                    self._end(index, "diverged", number, found)
                    break
            else:
                if index in logged:
                    self._log(index, step, of_steps[-1])
        if logged and self.active:
            losses = [float(values[-1]["loss"][index]) for index in self.active]
            shown = f"loss {min(losses):.4f} to {max(losses):.4f}"
            last, seconds = max(one.steps for one in self.members), time.monotonic() - self.begin
            left = seconds * (last - step) / (step - self.start)
            shown += f"  {clock(seconds)} gone  {clock(left)} left"
            logger.info("step %d/%d  %d runs  %s", step, last, len(self.active), shown)

    def evaluate(self, step: int, indices: Sequence[int]) -> None:
        """Evaluates members on the validation split, and their starts if they were not evaluated yet."""
        members = {index: self.members[index] for index in indices if index in self.active}
        if not members:
            return
        self._record_starts(step, {index: one for index, one in members.items() if one.best.value is None})
        trainable = jax.device_get(self.state.trainable)
        found = evaluate_members(self.group, combine(self.state.trainable, self.frozen), members)
        for index in members:
            self._judge(index, step, found[index], trainable)
        metric = self.group.metric
        values = [found[index][metric] for index in members if index in self.active]
        if values:
            logger.info("step %d  validation: %s %.4f to %.4f", step, metric, min(values), max(values))

    def _judge(self, index: int, step: int, found: dict[str, float], trainable: Any) -> None:
        """Takes a member's evaluation into account, and ends it where it is due; `trainable` has the leaves of all."""
        member, patience = self.members[index], self.members[index].config.train.early_stopping_patience
        if not math.isfinite(found["loss"]):
            self._end(index, "diverged", step, {"loss": found["loss"]})
            return
        self.records[index].log(step, found, "validation")
        metric = self.group.metric
        member.best = judge(member.best, metric, found, step, lambda: _copy_of(trainable, index))
        if patience is not None and member.best.stale >= patience:
            self._store([index])
            member.save()
            self._end(index, "early", step, {})

    def save(self) -> None:
        """Writes the checkpoints of all members that have not ended; those of earlier steps are deleted after that."""
        self._store(self.active)
        for index in self.active:
            self.members[index].save()
        for index in self.active:
            self.members[index].drop_before(self.members[index].step)

    def _record_starts(self, step: int, members: Mapping[int, Member]) -> None:
        """Evaluates members' starts; their record has them at the step of the first evaluation, as a run's has."""
        if members and self.group.config.train.eval_on_start:
            starts = evaluate_starts(self.group, members, self.slots)
            for index, found in starts.items():
                self.records[index].log(step, found, "start")
            values = [found[self.group.metric] for found in starts.values()]
            logger.info("before training: %s %.4f to %.4f", self.group.metric, min(values), max(values))

    def _store(self, indices: Sequence[int]) -> None:
        """Copies the state of these members from the device."""
        host, seconds = jax.device_get(self.state), time.monotonic() - self.begin
        for index in indices:
            member = self.members[index]
            moving = _copy_of((host.trainable, host.optimizer), index)
            member.state = State(moving[0], moving[1], host.step)
            member.lines, member.seconds = self.records[index].lines, self.before[index] + seconds

    def _end(self, index: int, how: str, step: int, values: dict[str, float]) -> None:
        member = self.members[index]
        if how == "diverged":
            self.records[index].log(step, values, "train")
            logger.warning("%s: diverged at step %d: %s", member.point.name, step, values)
        self.active.remove(index)
        self.end_member(self.group, member, self.records[index], f"{how} at step {step}")

    def _log(self, index: int, step: int, values: dict[str, float]) -> None:
        member = self.members[index]
        seconds = max(time.monotonic() - self.begin, 1e-9)
        numbers = {
            "loss": float(np.mean(member.losses)),
            "grad_norm": values["grad_norm"],
            "learning_rate": float(self.rates[step - 1 - self.start, index]),
            "epoch": step / member.per_epoch,
            f"{self.group.task.unit}_per_second": self.counts[index] / seconds,
        }
        self.records[index].log(step, numbers, "train")
        member.losses.clear()


def _copy_of(stacked: Any, index: int) -> Any:
    return jax.tree.map(lambda x: np.array(x[index]), stacked)
