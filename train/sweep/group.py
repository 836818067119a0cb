"""A group of a sweep: the members that train in one program, and the batches of its steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from train.config.run_config import RunConfig, rows_of_a_step
from train.data.bucketing import PlannedBatch
from train.data.random_streams import Stream, stream_key
from train.sweep.member import Member
from train.task.protocol import TrainingTask

StepPlan = tuple[PlannedBatch, ...]
"""The rows of a step: one batch for all members, or one for each."""


@dataclasses.dataclass(frozen=True)
class Programs:
    """The jitted functions of a group: `make_members_step`'s, and the evaluation of all members and of one."""

    step: Any
    evaluate: Callable
    evaluate_one: Callable


@dataclasses.dataclass
class Group:
    """The members that train in one program.

    Attributes:
      config: of the first member; the others differ from it only as `group_configs` says.
      form: the form that the members' adapters are padded to.
      lengths: the padded lengths of the steps' batches, ascending.
      start: the metrics of the members' starts, if these make the same model, have the same rows and were evaluated.
    """

    task: TrainingTask
    config: RunConfig
    base: Any
    form: dict[str, Any]
    members: list[Member]
    programs: Programs
    lengths: tuple[int, ...]
    start: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def key(self) -> jax.Array:
        """The root of the dropout keys."""
        return stream_key(self.config.seed, Stream.DROPOUT)

    @property
    def metric(self) -> str:
        """The validation metric that chooses the best step."""
        return self.members[0].opened.metric

    @property
    def shares_rows(self) -> bool:
        """Whether one batch is that of all members; else each has a batch of its own rows."""
        return share_rows(self.members)

    def plan(self, members: Sequence[Member], start: int, end: int) -> list[StepPlan]:
        """Returns the plan of each step of some members from `start`, counted from 0, to `end`."""
        planned = [one.plan(start, end) for one in (members[:1] if self.shares_rows else members)]
        return list(zip(*planned, strict=True))

    def batch(self, planned: StepPlan, members: Sequence[Member], slots: int) -> Any:
        """Makes the batch of one step of some members: their common one, or theirs stacked on a new leading axis.

        Args:
          slots: how many are stacked; copies of the last one fill up.
        """
        if self.shares_rows:
            return self._batch_of(members[0], planned[0])
        longest = max(one.length for one in planned)
        length = next(fitting for fitting in self.lengths if fitting >= longest)
        made = [
            self._batch_of(member, one._replace(length=length)) for member, one in zip(members, planned, strict=True)
        ]
        made += [made[-1]] * (slots - len(made))
        return jax.tree.map(lambda *leaves: np.stack(leaves), *made)

    def _batch_of(self, member: Member, planned: PlannedBatch) -> Any:
        size = rows_of_a_step(self.config)
        return self.task.batch(member.opened, "train", planned, size, np.arange(size))


def share_rows(members: Sequence[Member]) -> bool:
    """Returns whether members have the same rows, read once for all."""
    return all(one.opened is members[0].opened for one in members)
