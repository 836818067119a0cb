"""Trains members of a group together from one step to another: steps, evaluations, records and checkpoints."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jlora import combine
from train.cli.progress import clock
from train.cli.signals import Stop
from train.config.run_config import learning_rate_of
from train.run.best import judge
from train.run.recorder import Recorder
from train.run.state import State
from train.sweep.group import Group
from train.sweep.member import Member
from train.sweep.pad_adapters import stack_trees

logger = logging.getLogger(__name__)

EndMember = Callable[[Group, Member, Recorder, str], None]
"""end_member(group, member, its record, how it ended): "early", after train.early_stopping_patience, or "diverged"."""


def train_stage(
    group: Group, members: Sequence[Member], slots: int, end: int, stop: Stop, end_member: EndMember
) -> bool:
    """Trains members, which have made equally many steps, to step `end`; returns False if a signal cut it short.

    There it evaluates them and writes their checkpoints. A member that ends earlier keeps its slot, but its values are
    ignored from then on.

    Args:
      slots: the number of members of the program, at least as many as `members`; the others are copies.
      end_member: called once for each member that ends before the stage does.
    """
    with ExitStack() as records:
        opened = [records.enter_context(member.open_record()) for member in members]
        stage = _Stage(group, list(members), opened, slots, end_member)
        for step, planned in enumerate(group.plan(stage.start, end), stage.start + 1):
            stage.make_step(planned)
            stopped = stop.is_requested()
            log, evaluate, save = _due(group, step, end)
            if log or evaluate or save or stopped:
                stage.read(step, log)
            if evaluate:
                stage.evaluate(step)
            if save or stopped:
                stage.save()
            if stopped:
                return False
            if not stage.active:
                break
    return True


def _due(group: Group, step: int, end: int) -> tuple[bool, bool, bool]:
    """Returns whether a log line, an evaluation and a checkpoint are due at this step."""
    train, last = group.config.train, step in (end, group.steps)
    every = train.eval_every or group.per_epoch
    log = step % train.log_every == 0 or step == group.steps
    evaluate, save = (last or step % period == 0 for period in (every, train.checkpoint_every or every))
    return log, evaluate, save


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
    end_member: EndMember

    def __post_init__(self) -> None:
        filled = [*self.members, *[self.members[-1]] * (self.slots - len(self.members))]
        self.start = self.members[0].step
        moving = stack_trees([(one.state.trainable, one.state.optimizer) for one in filled])
        self.state = State(moving[0], moving[1], jnp.int32(self.start))
        self.frozen = stack_trees([one.frozen for one in filled])
        self.peaks = jnp.array([learning_rate_of(one.config) for one in filled], jnp.float32)
        self.active = list(range(len(self.members)))
        self.unread: list[dict[str, Any]] = []
        self.begin, self.count = time.monotonic(), 0
        self.before = [one.seconds for one in self.members]

    def make_step(self, planned: Any) -> None:
        group = self.group
        batch = group.batch(planned)
        self.state, values = group.programs.step(self.peaks, self.state, self.frozen, group.base, batch, group.key)
        self.unread.append(values)
        lengths = group.opened.rows["train"].lengths
        self.count += int(lengths[planned.rows].sum()) if group.task.unit == "tokens" else len(planned.rows)

    def read(self, step: int, log: bool) -> None:
        """Reads the values of the last steps: ends members that have diverged, and records the others' if `log`."""
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
                if log:
                    self._log(index, step, of_steps[-1])
        if log and self.active:
            losses = [float(values[-1]["loss"][index]) for index in self.active]
            shown = f"loss {min(losses):.4f} to {max(losses):.4f}"
            seconds = time.monotonic() - self.begin
            text = "step %d/%d  %d runs  %s  %s gone"
            logger.info(text, step, self.group.steps, len(self.active), shown, clock(seconds))

    def evaluate(self, step: int) -> None:
        """Evaluates all members on the validation split, and their starts if they were not evaluated yet."""
        train, metric = self.group.config.train, self.group.opened.metric
        if train.eval_on_start and any(self.members[i].best.value is None for i in self.active):
            self._record_start(step)
        trainable = jax.device_get(self.state.trainable)
        found = self.group.evaluate(combine(self.state.trainable, self.frozen), len(self.members))
        for index in list(self.active):
            self._judge(index, step, found[index], trainable)
        values = [found[index][metric] for index in self.active]
        if values:
            logger.info("step %d  validation: %s %.4f to %.4f", step, metric, min(values), max(values))

    def _judge(self, index: int, step: int, found: dict[str, float], trainable: Any) -> None:
        """Takes a member's evaluation into account, and ends it where it is due; `trainable` has the leaves of all."""
        member, patience = self.members[index], self.group.config.train.early_stopping_patience
        if not math.isfinite(found["loss"]):
            self._end(index, "diverged", step, {"loss": found["loss"]})
            return
        self.records[index].log(step, found, "validation")
        metric = self.group.opened.metric
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

    def _record_start(self, step: int) -> None:
        """Evaluates the members' starts; their record has them at the step of the first evaluation, as a run's has."""
        if (same := self.group.evaluate_start()) is not None:
            all_found = [same] * len(self.members)
        else:
            filled = [*self.members, *[self.members[-1]] * (self.slots - len(self.members))]
            starts = combine(stack_trees([one.best.trainable for one in filled]), self.frozen)
            all_found = self.group.evaluate(starts, len(self.members))
        for index, found in enumerate(all_found):
            if index in self.active and self.members[index].best.value is None:
                self.records[index].log(step, found, "start")

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
        member, group = self.members[index], self.group
        seconds = max(time.monotonic() - self.begin, 1e-9)
        numbers = {
            "loss": float(np.mean(member.losses)),
            "grad_norm": values["grad_norm"],
            "learning_rate": float(group.rate(member)(step - 1)),  # type: ignore[arg-type]
            "epoch": step / group.per_epoch,
            f"{group.task.unit}_per_second": self.count / seconds,
        }
        self.records[index].log(step, numbers, "train")
        member.losses.clear()


def _copy_of(stacked: Any, index: int) -> Any:
    return jax.tree.map(lambda x: np.array(x[index]), stacked)
